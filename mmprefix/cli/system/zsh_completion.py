"""Completion of the command line in zsh, with a short description of each verb and option."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmprefix.cli.system.completion_words import FILES, NOTHING, RECIPES, OptionWord, VerbWords, short

_SCRIPT = """\
#compdef mmprefix
# zsh completion of mmprefix, written by: mmprefix completion zsh
_mmprefix_recipes() {{
    local -a recipes
    recipes=({recipes})
    _alternative 'recipes:recipe:compadd -a recipes' 'files:recipe:_files'
}}
_mmprefix() {{
    local context state state_descr line
    typeset -A opt_args
    local -a verbs
    verbs=(
{verbs}
    )
    if (( CURRENT == 2 )); then
        if [[ $PREFIX == -* ]]; then compadd -- --help --version; else _describe verb verbs; fi
        return
    fi
    local verb=$words[2]
    shift words
    (( CURRENT-- ))
    case $verb in
{cases}
    esac
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _mmprefix "$@"; else compdef _mmprefix mmprefix; fi
"""


def script(verbs: Sequence[VerbWords], recipes: Sequence[str]) -> str:
    """Script for ``verbs``."""
    lines = [f"        {_quoted(f'{verb.name}:{short(verb.text)}')}" for verb in verbs]
    alike: dict[tuple[str, ...], list[str]] = {}  # training verbs have much the same options
    for verb in verbs:
        alike.setdefault(tuple(_case(verb)), []).append(verb.name)
    cases = "\n".join("\n".join([f"        {'|'.join(names)})", *lines]) for lines, names in alike.items())
    return _SCRIPT.format(recipes=" ".join(recipes), verbs="\n".join(lines), cases=cases)


def _case(verb: VerbWords) -> Iterator[str]:
    """Lines that complete what follows ``verb``."""
    if verb.commands:
        yield "            if (( CURRENT == 2 )); then"
        names = " ".join(_quoted(f"{one.name}:{short(one.text)}") for one in verb.commands)
        yield f"                local -a commands; commands=({names}); _describe command commands; return"
        yield "            fi"
        yield "            shift words; (( CURRENT-- ))"
        yield "            case $words[1] in"
        for command in verb.commands:
            yield f"                {command.name}) _arguments {' '.join(_arguments(command))} ;;"
        yield "            esac ;;"
        return
    specs = [f"                {spec}" for spec in _arguments(verb)]
    yield " \\\n".join(["            _arguments", *specs]) + " ;;"


def _arguments(verb: VerbWords) -> Iterator[str]:
    for option in verb.options:
        for name in option.names:
            yield _quoted(_spec(name, option))
    yield _quoted(f"*:argument:{_action(verb.words)}")


def _spec(name: str, option: OptionWord) -> str:
    text = short(option.text).translate({ord("["): "(", ord("]"): ")"})
    if option.value == NOTHING:
        return f"{name}[{text}]"
    return f"*{name}{'=' if name.startswith('--') else ''}[{text}]:value:{_action(option.value)}"


def _action(value: str | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return f"({' '.join(value)})"
    return {FILES: "_files", RECIPES: "_mmprefix_recipes"}.get(value, "")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
