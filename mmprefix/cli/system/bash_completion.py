"""Completion of the command line in bash, as a script without descriptions (bash shows none)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mmprefix.cli.system.completion_words import FILES, NOTHING, RECIPES, VerbWords

_SCRIPT = """\
# bash completion of mmprefix, written by: mmprefix completion bash
_mmprefix() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} verb= command= word words= options=
    local recipes="{recipes}"
    COMPREPLY=()
    if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${{COMP_WORDS[COMP_CWORD-2]}}; fi
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $word in -*|=) continue ;; esac
        if [[ -z $verb ]]; then verb=$word; else command=$word; break; fi
    done
    case $verb:$prev in
{values}
    esac
    case $verb in
        "") words="{verbs}"; options="--help --version" ;;
{options}
    esac
    case $verb:$command in
{commands}
    esac
    if [[ $cur == -* ]]; then words=$options; fi
    if [[ $cur == -* || -z $verb ]]; then compopt +o default 2>/dev/null; fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -o bashdefault -F _mmprefix mmprefix
"""


def script(verbs: Sequence[VerbWords], recipes: Sequence[str]) -> str:
    """Script for ``verbs``; values of an option are files, recipes, choices, or text that nothing completes."""
    named = [verb for verb in verbs if not verb.commands]
    inside = [verb for verb in verbs if verb.commands]
    return _SCRIPT.format(
        recipes=" ".join(recipes),
        values="\n".join(_values(verbs)),
        verbs=" ".join(verb.name for verb in verbs),
        options="\n".join(_case(verb.name, verb) for verb in named),
        commands="\n".join(line for verb in inside for line in _commands(verb)) or "        *) ;;",
    )


def _case(pattern: str, verb: VerbWords) -> str:
    words = {FILES: "", RECIPES: "$recipes"}.get(verb.words) if isinstance(verb.words, str) else " ".join(verb.words)
    options = " ".join(name for option in verb.options for name in option.names)
    return f'        {pattern}) words="{words or ""}"; options="{options}" ;;'


def _commands(verb: VerbWords) -> Iterator[str]:
    """Cases of a verb with commands: the commands first, then the options of each."""
    yield from (_case(f"{verb.name}:{command.name}", command) for command in verb.commands)
    names = " ".join(command.name for command in verb.commands)
    yield f'        {verb.name}:*) words="{names}"; options="--help" ;;'


def _values(verbs: Sequence[VerbWords]) -> Iterator[str]:
    """Cases of options with a value; those of one kind stand in one line, for all verbs where they agree."""
    kinds: dict[str, dict[str | tuple[str, ...], list[str]]] = {}
    for verb in verbs:
        for option in [*verb.options, *(one for command in verb.commands for one in command.options)]:
            for name in option.names:
                kinds.setdefault(name, {}).setdefault(option.value, []).append(verb.name)
    patterns: dict[str | tuple[str, ...], list[str]] = {}
    for name, values in kinds.items():
        for value, owners in values.items():
            if value != NOTHING:
                both = [f"*:{name}"] if len(values) == 1 else [f"{owner}:{name}" for owner in dict.fromkeys(owners)]
                patterns.setdefault(value, []).extend(both)
    for value, names in patterns.items():
        yield f"        {'|'.join(names)})\n            {_action(value)} ;;"


def _action(value: str | tuple[str, ...]) -> str:
    if value == FILES:
        return "return"
    if value == "":
        return "compopt +o default 2>/dev/null; return"
    words: Iterable[str] = ["$recipes"] if value == RECIPES else value
    return f'COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$cur")); return'
