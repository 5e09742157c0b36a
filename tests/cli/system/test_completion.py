"""Completion: the scripts in real shells, and every word that they offer taken by the verb's own parser."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from mmprefix.cli.main import TRAINING, VERBS, main, verb_parser
from mmprefix.cli.system.completion_words import all_words, short
from mmprefix.cli.system.shipped import recipe_names

BASH = shutil.which("bash") or "bash"
ZSH = shutil.which("zsh")
FISH = shutil.which("fish")
CASES = [  # what stands before the cursor, some of what is offered, and what is not
    ("", {"fit", "caption", "recipes", "doctor", "completion"}, {"--config"}),
    ("fi", {"fit"}, {"predict"}),
    ("fit --sav", {"--save", "--save_to"}, {"--name"}),
    ("fit --save ", {"best", "last", "none"}, {"--save"}),
    ("fit --config quick", {"quickstart"}, {"sounds"}),
    ("fit --trainer.max_", {"--trainer.max_epochs", "--trainer.max_steps"}, {"--trainer.devices"}),
    ("fit --overwrite --data.ro", {"--data.root"}, {"--data.train"}),
    ("encode --to ", {"store", "webdataset"}, {"quickstart"}),
    ("evaluate x.jsonl --task d", {"detection"}, {"caption"}),
    ("recipes esc", {"esc10", "esc10_whisper"}, {"sounds"}),
    ("users ", {"add", "remove", "list"}, {"fit"}),
    ("users add --h", {"--history", "--help"}, {"--manifest"}),
    ("completion f", {"fish"}, {"bash"}),
    ("parts Cau", {"CausalDecoder"}, {"MLP"}),
]
ZSH_CASES = [  # what stands before the cursor, and the word that it becomes
    ("comp", "completion"),
    ("fit --trainer.max_ep", "--trainer.max_epochs"),
    ("fit --config quick", "quickstart"),
    ("users exp", "export"),
    ("users add --hist", "--history"),
    ("evaluate x.jsonl --task det", "detection"),
    ("fit --save=las", "--save=last"),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    files = {shell: folder / shell for shell in ("bash", "zsh", "fish")}
    with pytest.MonkeyPatch.context() as patch:
        for shell, file in files.items():
            with file.open("w", encoding="utf-8") as out:
                patch.setattr("sys.stdout", out)
                assert main(["completion", shell]) == 0
    return files


def bash(script: Path, line: str, folder: Path) -> set[str]:
    words = ["mmprefix", *line.split(" ")]
    quoted = " ".join(f"'{word}'" for word in words)
    program = f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _mmprefix; "
    program += "printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(
        [BASH, "--norc", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={"PATH": ""},  # no program, and no Python, is started
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(("line", "offered", "others"), CASES)
def test_bash(scripts: dict[str, Path], tmp_path: Path, line: str, offered: set[str], others: set[str]) -> None:
    answers = bash(scripts["bash"], line, tmp_path)
    assert offered <= answers
    assert not others & answers
    if line and not line.endswith(" "):
        assert all(word.startswith(line.split(" ")[-1]) for word in answers)


def test_bash_knows_the_function_and_an_equals_sign(scripts: dict[str, Path], tmp_path: Path) -> None:
    program = f"source {scripts['bash']}; complete -p mmprefix"
    done = subprocess.run([BASH, "--norc", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "complete -o bashdefault -o default -F _mmprefix mmprefix\n"
    assert bash(scripts["bash"], "fit --save = b", tmp_path) == {"best"}  # as readline parts --save=b
    assert bash(scripts["bash"], "fit --config =", tmp_path) == set(recipe_names())
    assert bash(scripts["bash"], "fit --data.train ", tmp_path) == set()  # readline names files


@pytest.mark.skipif(FISH is None, reason="fish is not installed")
def test_fish(scripts: dict[str, Path], tmp_path: Path) -> None:
    """Once for all cases: fish takes long to start."""
    lines = "; ".join(f"echo '== {line}'; complete -C 'mmprefix {line}'" for line, _, _ in CASES)
    program = f"source {scripts['fish']}; {lines}"
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(
        [str(FISH), "--no-config", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path,
        env=environment,
    )  # fmt: skip
    assert done.stderr == ""
    answers: dict[str, set[str]] = {}
    line = ""
    for row in done.stdout.splitlines():
        if row.startswith("== "):
            line = row.removeprefix("== ")
            answers[line] = set()
        else:
            answers[line].add(row.partition("\t")[0])
    for line, offered, others in CASES:
        assert offered <= answers[line], line
        assert not others & answers[line], line


@pytest.mark.skipif(ZSH is None, reason="zsh is not installed")
def test_zsh(scripts: dict[str, Path], tmp_path: Path) -> None:
    """The one answer is written into the line of an interactive zsh, whose screen is read."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execve(str(ZSH), ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb", "HOME": str(tmp_path), "PS1": "> "})
    try:
        start = f"autoload -Uz compinit; compinit -u -D; source {scripts['zsh']}; print re''ady"
        os.write(terminal, start.encode() + b"\n")
        assert "ready" in _screen(terminal, "ready")
        for line, answer in ZSH_CASES:
            os.write(terminal, f"mmprefix {line}\t".encode())
            before, space, _ = line.rpartition(" ")
            wanted = f"mmprefix {before}{space}{answer}"
            assert wanted in _screen(terminal, wanted)
            os.write(terminal, b"\x15")  # Ctrl-U: an empty line
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def _screen(terminal: int, wanted: str) -> str:
    text = ""
    end = time.monotonic() + 10
    while wanted not in text and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            text += os.read(terminal, 4096).decode(errors="replace")
            text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\x07|\r", "", text)
            while "\b" in text:
                text = re.sub(r"[^\b]?\b", "", text, count=1)
    return text


def test_every_verb_and_option_is_in_every_script(scripts: dict[str, Path]) -> None:
    texts = {shell: file.read_text(encoding="utf-8") for shell, file in scripts.items()}
    verbs = all_words()
    assert [verb.name for verb in verbs] == [*TRAINING, *VERBS]
    for verb in verbs:
        if verb.name in VERBS and not verb.commands:
            offered = {name for option in verb.options for name in option.names}
            assert offered == verb_parser(verb.name).known_options()
        for option in verb.options:
            for name in option.names:
                assert name in texts["bash"]
                assert f"{name}[" in texts["zsh"] or f"{name}=[" in texts["zsh"]
                assert (f"-l {name[2:]} " if name.startswith("--") else f"-s {name[1:]} ") in texts["fish"]
    assert all(len(text) < 60_000 for text in texts.values())


def test_training_verbs_take_the_options_that_are_offered() -> None:
    """The table of parts knows each, and the words that a person types first are among them."""
    names = {name for verb in all_words() if verb.name == "fit" for option in verb.options for name in option.names}
    wanted = {"--config", "--data.root", "--data.train", "--trainer.max_epochs", "--ckpt_path", "--name", "--cache"}
    assert wanted <= names


def test_descriptions_are_short_and_plain() -> None:
    for verb in all_words():
        for option in verb.options:
            assert len(short(option.text)) <= 52
            assert "\n" not in short(option.text)
    assert short("Name of the run, which writes to runs/NAME; otherwise that of the recipe") == (
        "Name of the run, which writes to runs/NAME; ..."
    )
