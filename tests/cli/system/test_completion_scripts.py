"""Scripts of bash, fish and zsh for a few words made by hand; in the shell itself where that is installed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from mmprefix.cli.system import bash_completion, fish_completion, zsh_completion
from mmprefix.cli.system.completion_words import FILES, NOTHING, RECIPES, OptionWord, VerbWords

HELP = OptionWord(("--help", "-h"), "Show it's all: [here].", NOTHING)
VERBS = [
    VerbWords("fit", "Train: a model's mapper", [
        HELP,
        OptionWord(("--config",), "the recipe", RECIPES),
        OptionWord(("--save",), "what is kept", ("best", "last")),
        OptionWord(("--out",), "file", FILES),
    ], words=RECIPES),
    VerbWords("draw", "Draw", [
        HELP,
        OptionWord(("--save",), "how", ("png", "svg")),
        OptionWord(("--name",), "a text", ""),
    ], words=("circle", "square")),
    VerbWords("users", "Users", [HELP], [
        VerbWords("add", "Add 'one'", [HELP, OptionWord(("--history",), "texts", FILES)]),
        VerbWords("list", "List", [HELP]),
    ]),
]  # fmt: skip
RECIPE_NAMES = ["quick", "quiet", "other"]
FISH_WORD = re.compile(r"'((?:[^'\\]|\\.)*)'|(\S+)")  # in single quotes, where a backslash escapes, or plain
CASES = [  # what stands before the cursor, and all words that are offered for it
    ("", {"fit", "draw", "users"}),
    ("f", {"fit"}),
    ("fit qui", {"quick", "quiet"}),
    ("fit --config o", {"other"}),
    ("fit --sa", {"--save"}),
    ("fit --save ", {"best", "last"}),
    ("draw --save ", {"png", "svg"}),
    ("draw --na", {"--name"}),
    ("draw c", {"circle"}),
    ("draw --ou", set()),
    ("users ", {"add", "list"}),
    ("users add --hi", {"--history"}),
    ("users list --hi", set()),
]


@pytest.mark.parametrize(("line", "offered"), CASES)
def test_bash_offers_exactly_these(line: str, offered: set[str], tmp_path: Path) -> None:
    script = tmp_path / "bash"
    script.write_text(bash_completion.script(VERBS, RECIPE_NAMES), encoding="utf-8")
    words = shlex.join(["mmprefix", *line.split(" ")])
    count = len(line.split(" "))
    program = f'source {script}; COMP_WORDS=({words}); COMP_CWORD={count}; _mmprefix; echo "${{COMPREPLY[@]}}"'
    bash = shutil.which("bash") or "bash"
    done = subprocess.run([bash, "--norc", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr == ""
    assert set(done.stdout.split()) == offered


def of_fish(script: str, line: str) -> set[str]:
    """Words that the ``complete`` lines of ``script`` offer for ``line``, read as fish reads them."""
    *before, current = line.split(" ")
    words = [word for word in before if not word.startswith("-")]
    offered, values = set[str](), None
    for rule in re.findall(r"^complete -c mmprefix -n (.*)$", script, flags=re.MULTILINE):
        condition, *parts = [quoted or plain for quoted, plain in FISH_WORD.findall(rule)]
        name, *arguments = condition.split()
        holds = {
            "__mmprefix_no_verb": not words,
            "__mmprefix_in": words[:1] != [] and words[0] in arguments,
            "__mmprefix_command": (words == arguments[:1] and arguments[1:] == ["-"]) or words[:2] == arguments,
        }[name]
        if not holds:
            continue
        options = [f"--{parts[n + 1]}" for n, part in enumerate(parts) if part == "-l"]
        options += [f"-{parts[n + 1]}" for n, part in enumerate(parts) if part == "-s"]
        texts = [parts[n + 1].split() for n, part in enumerate(parts) if part == "-a"]
        listed = [word for text in texts for word in (RECIPE_NAMES if text == ["$__mmprefix_recipes"] else text)]
        if before and before[-1] in options and not {"-r", "-x"}.isdisjoint(parts):
            values = set(listed)
        elif current.startswith("-"):
            offered |= set(options)
        elif not options:
            offered |= set(listed)
    return {word for word in (offered if values is None else values) if word.startswith(current)}


@pytest.mark.parametrize(("line", "offered"), CASES)
def test_fish_offers_exactly_these(line: str, offered: set[str]) -> None:
    assert of_fish(fish_completion.script(VERBS, RECIPE_NAMES), line) == offered


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_itself_offers_these(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(fish_completion.script(VERBS, RECIPE_NAMES), encoding="utf-8")
    for line, offered in CASES:
        program = f"source {tmp_path / 'script'}; complete -C 'mmprefix {line}'"
        words = ["fish", "--no-config", "-c", program]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert {row.partition("\t")[0] for row in done.stdout.splitlines()} - {"script"} >= offered


def test_fish_says_what_a_word_is_and_where_no_file_may_stand() -> None:
    script = fish_completion.script(VERBS, RECIPE_NAMES)
    assert "set -g __mmprefix_recipes quick quiet other\n" in script
    assert "-a fit -d 'Train'" in script
    assert r"-l help -d 'Show it\'s all'" in script
    assert "complete -c mmprefix -n '__mmprefix_in draw' -l name -x -d 'a text'" in script
    assert "complete -c mmprefix -n '__mmprefix_in fit' -l out -r -d 'file'" in script
    assert "complete -c mmprefix -n '__mmprefix_in fit draw' -l help" in script  # once for the verbs that share it


def zsh_specs(script: str, verb: str) -> list[str]:
    """Words that ``_arguments`` gets for ``verb``."""
    part = re.search(rf"^        (?:\w+\|)*{verb}(?:\|\w+)*\)\n(.*?) ;;$", script, flags=re.MULTILINE | re.DOTALL)
    assert part
    return shlex.split(part[1].replace("\\\n", " "))


def test_zsh_has_every_verb_option_and_value() -> None:
    script = zsh_completion.script(VERBS, RECIPE_NAMES)
    assert "recipes=(quick quiet other)" in script
    listed = shlex.split(script[script.index("verbs=(") + 7 : script.index("\n    )")])
    assert listed == ["fit:Train", "draw:Draw", "users:Users"]
    assert zsh_specs(script, "fit") == [
        "_arguments",
        "--help[Show it's all]",
        "-h[Show it's all]",
        "*--config=[the recipe]:value:_mmprefix_recipes",
        "*--save=[what is kept]:value:(best last)",
        "*--out=[file]:value:_files",
        "*:argument:_mmprefix_recipes",
    ]
    assert zsh_specs(script, "draw")[3:] == [
        "*--save=[how]:value:(png svg)",
        "*--name=[a text]:value:",
        "*:argument:(circle square)",
    ]
    users = script[script.index("        users)") :]
    assert "commands=('add:Add '\\''one'\\''' 'list:List')" in users
    assert (
        "add) _arguments '--help[Show it'\\''s all]' '-h[Show it'\\''s all]' '*--history=[texts]:value:_files'" in users
    )


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_itself_reads_the_script(tmp_path: Path) -> None:
    (tmp_path / "_mmprefix").write_text(zsh_completion.script(VERBS, RECIPE_NAMES), encoding="utf-8")
    done = subprocess.run(["zsh", "-n", "_mmprefix"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
