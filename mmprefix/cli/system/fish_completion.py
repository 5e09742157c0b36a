"""Completion of the command line in fish, with a short description of each verb and option."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmprefix.cli.system.completion_words import FILES, NOTHING, RECIPES, OptionWord, VerbWords, short

_HEAD = """\
# fish completion of mmprefix, written by: mmprefix completion fish
function __mmprefix_words
    set -l words (commandline -opc)
    for word in $words[2..-1]
        string match -q -- '-*' $word; or echo $word
    end
end
function __mmprefix_no_verb
    test (count (__mmprefix_words)) -eq 0
end
function __mmprefix_in
    set -l words (__mmprefix_words)
    test (count $words) -gt 0; and contains -- $words[1] $argv
end
function __mmprefix_command
    set -l words (__mmprefix_words)
    if test (count $words) -lt 2
        test "$argv[2]" = -; and test "$words[1]" = $argv[1]
    else
        test "$words[1]" = $argv[1]; and test "$words[2]" = $argv[2]
    end
end
set -g __mmprefix_recipes {recipes}
complete -c mmprefix -e
complete -c mmprefix -n __mmprefix_no_verb -f
complete -c mmprefix -n __mmprefix_no_verb -l help -d 'show all verbs'
complete -c mmprefix -n __mmprefix_no_verb -l version -d 'show the version'
"""


def script(verbs: Sequence[VerbWords], recipes: Sequence[str]) -> str:
    """Script for ``verbs``; an option that several verbs have in the same form stands once."""
    lines = [_HEAD.format(recipes=" ".join(recipes))]
    lines += [f"complete -c mmprefix -n __mmprefix_no_verb -a {verb.name} -d {_quoted(verb.text)}" for verb in verbs]
    owners: dict[tuple[str, ...], list[str]] = {}
    for verb in verbs:
        for option in verb.options:
            if not verb.commands:
                owners.setdefault(tuple(_option(option)), []).append(verb.name)
    for parts, names in owners.items():
        lines += [f"complete -c mmprefix -n '__mmprefix_in {' '.join(names)}' {part}" for part in parts]
    for verb in verbs:
        lines += _positional(verb)
        lines += _commands(verb)
    return "\n".join(lines) + "\n"


def _commands(verb: VerbWords) -> Iterator[str]:
    for command in verb.commands:
        before = f"complete -c mmprefix -n '__mmprefix_command {verb.name} -' -f"
        yield f"{before} -a {command.name} -d {_quoted(command.text)}"
        for option in command.options:
            for part in _option(option):
                yield f"complete -c mmprefix -n '__mmprefix_command {verb.name} {command.name}' {part}"


def _positional(verb: VerbWords) -> Iterator[str]:
    before = f"complete -c mmprefix -n '__mmprefix_in {verb.name}'"
    if verb.words == RECIPES:
        yield f"{before} -a '$__mmprefix_recipes' -d recipe"
    elif isinstance(verb.words, tuple):
        yield f"{before} -f -a {_quoted(' '.join(verb.words), whole=True)}"


def _option(option: OptionWord) -> Iterator[str]:
    """Options of ``complete`` for each spelling."""
    for name in option.names:
        flag = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
        yield f"{flag} {_value(option.value)}-d {_quoted(option.text)}"


def _value(value: str | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return f"-r -a {_quoted(' '.join(value), whole=True)} "
    return {NOTHING: "", FILES: "-r ", RECIPES: "-r -a '$__mmprefix_recipes' "}.get(value, "-x ")


def _quoted(text: str, *, whole: bool = False) -> str:
    text = text if whole else short(text)
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
