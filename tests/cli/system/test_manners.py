"""Manners of the command line: examples, quick start, streams, colours, Ctrl-C and a reader that goes away."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rich
import torch

from mmprefix.cli.help.examples import EXAMPLES
from mmprefix.cli.main import TRAINING, VERBS, main, verb_parser
from mmprefix.cli.spellings import with_known_spellings
from mmprefix.cli.system.completion_words import all_words
from mmprefix.version import __version__
from tiny.forked import Forked
from tiny.shell import Shell

COMMAND = [sys.executable, "-m", "mmprefix"]
ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.mark.parametrize("verb", [*TRAINING, *VERBS])
def test_help_ends_with_an_example_that_parses(verb: str, shell: Shell) -> None:
    try:
        code, out, _ = shell(verb, "--help")
    except SystemExit as stop:  # argparse ends after its help
        code, out = stop.code, shell.capsys.readouterr().out
    assert code in (0, None)
    assert out.endswith(f"example:\n  {EXAMPLES[verb]}\n")
    program, name, *words = shlex.split(EXAMPLES[verb].partition(" > ")[0])
    assert (program, name) == ("mmprefix", verb)
    if verb in VERBS:
        parser = verb_parser(verb)
        parser.parse_args(with_known_spellings(words, parser.known_options()))
    else:
        offered = {option for one in all_words() if one.name == verb for row in one.options for option in row.names}
        assert {word for word in words if word.startswith("--")} <= offered


def test_examples_that_need_no_model_run(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_captions.txt").write_text("a dog\n")
    Path("predictions.jsonl").write_text('{"id": "1", "prediction": "a dog barks", "references": ["a dog barks"]}\n')
    for verb in ("users", "evaluate", "recipes", "parts", "doctor", "completion"):
        code, out, err = shell(*shlex.split(EXAMPLES[verb].partition(" > ")[0])[1:])
        assert (code, err) == (0, ""), verb
        assert out
    assert Path("my.yaml").is_file()


def test_programs_read_json(shell: Shell, tmp_path: Path) -> None:
    """Each verb whose answer a program would read, and each prints one JSON value."""
    store, manifest = tmp_path / "users.db", tmp_path / "rows.jsonl"
    manifest.write_text('{"id": "1", "text": "a dog", "captions": ["a dog"]}\n')
    assert shell("users", "add", store, "u07")[0] == 0
    for words in (["users", "list", store], ["users", "show", store, "u07"], ["parts"], ["recipes"], ["doctor"]):
        code, out, _ = shell(*words, "--json")
        assert code == 0
        assert json.loads(out)


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["doctor"], ["recipes"], ["completion", "bash"], ["fit", "--help"], ["parts"]]
)
def test_no_heavy_library_is_imported(words: list[str]) -> None:
    program = f"import sys; from mmprefix.cli.main import main\ntry: main({words!r})\nexcept SystemExit: pass\n"
    program += "print([name for name in ('torch', 'lightning', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"mmprefix {__version__}\n"


@pytest.mark.parametrize("words", [["parts"], ["recipes", "--json"], ["fit", "--help"]])
def test_a_reader_that_goes_away_is_no_error(words: list[str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == ""


def interrupted(words: list[str], ready: Path, folder: Path) -> tuple[int, str]:
    """Exit code and standard error of a verb that gets Ctrl-C when the named pipe ``ready`` is opened by it."""
    os.mkfifo(ready)
    process = subprocess.Popen(
        [*COMMAND, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with ready.open("w"):  # the verb waits for a first line, which never comes
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    return process.returncode, err


def interrupted_fork(words: list[str], ready: Path, folder: Path) -> tuple[int, str]:
    """Exit code and output of a verb in a forked process, which has imported what takes seconds."""
    os.mkfifo(ready)

    def work() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        return main(words)

    process = Forked(work, folder / "log")
    with ready.open("w"):
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    return code, process.log.read_text()


@pytest.mark.parametrize("verb", ["evaluate", "check-data", "prepare", "users", "fit"])
def test_ctrl_c_is_one_line_and_130(verb: str, tmp_path: Path) -> None:
    """Each is stopped while it reads."""
    pipe = tmp_path / ("captions.csv" if verb == "prepare" else "rows.jsonl")
    words = {
        "evaluate": ["evaluate", str(pipe)],
        "check-data": ["check-data", str(pipe)],
        "prepare": ["prepare", str(pipe), "--out", "data"],
        "users": ["users", "add", "users.db", "u07", "--history", str(pipe)],
        "fit": ["fit", "quickstart", "--data", "PairData", "--data.train", str(pipe), "--data.val", str(pipe)],
    }[verb]
    code, err = (interrupted_fork if verb == "fit" else interrupted)(words, pipe, tmp_path)
    lines = [line for line in err.splitlines() if line.startswith("mmprefix: ")]
    assert code == 130, err
    assert lines[-1].startswith("mmprefix: stopped by SIGINT")
    assert len(lines) == 1
    assert "Traceback" not in err


def fit_on_a_terminal(words: list[str], folder: Path, **environment: str) -> tuple[int, bytes]:
    """Exit code of ``mmprefix WORDS`` in a forked process whose streams are a terminal, and what it shows there."""
    import pty

    child, terminal = pty.fork()
    if child == 0:
        code = 70
        try:
            os.chdir(folder)
            os.environ |= {"COLUMNS": "100", "TERM": "xterm-256color", **environment}
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "w" if n else "r", closefd=False) for n in range(3))
            rich.reconfigure()
            torch.set_num_threads(1)
            code = main(words)
            sys.stdout.flush()
        finally:
            os._exit(code)
    text = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the end, on Linux
            break
        if not part:
            break
        text += part
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


COLOUR = rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m"


def test_no_color(tmp_path: Path) -> None:
    """With NO_COLOR nothing is coloured on a terminal, progress bar and tables of libraries included."""
    words = ["fit", "quickstart", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    words += ["--data.scenes", "40", "--trainer.check_val_every_n_epoch", "1", "--trainer.limit_val_batches", "1"]
    words += ["--trainer.limit_test_batches", "1"]
    code, text = fit_on_a_terminal(words, tmp_path, NO_COLOR="1")
    assert code == 0, text.decode()
    assert b"saved the model: " in text
    assert re.findall(COLOUR, text) == []
    assert re.findall(COLOUR, text + b"\x1b[1;31mred\x1b[0m") == [b"\x1b[1;31m"]
