"""Command line: printed output of each verb, and one plain line with the right exit code for every error."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mmprefix
from mmprefix import Predictor
from mmprefix.cli import main as cli
from mmprefix.cli.main import main
from tiny import models as tiny_models
from tiny.models import media_files, sound_bytes, tone
from tiny.shell import Shell

VERBS = (
    "fit", "validate", "test", "predict", "caption", "understand", "detect", "transcribe", "evaluate", "check-data",
    "import", "demo",
)  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_models.frozen_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def saved(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_model(tmp_path_factory.mktemp("saved") / "both", parts, "image", "audio")


@pytest.fixture(scope="module")
def model(saved: Path) -> Predictor:
    return mmprefix.load(saved, device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(file) for file in media_files(tmp_path_factory.mktemp("media"))[:4]]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


# ----------------------------------------------------------------------------------------------------------- caption


def test_caption_prints_a_line_a_file(shell: Shell, saved: Path, files: list[str], model: Predictor) -> None:
    code, out, _ = shell("caption", saved, *files, "--device", "cpu")
    assert code == 0
    assert out == "".join(f"{file}: {text}\n" for file, text in zip(files, model(files), strict=True))


def test_caption_as_json(shell: Shell, saved: Path, files: list[str], model: Predictor) -> None:
    options = (
        "--num-beams",
        "4",
        "--num-return",
        "3",
        "--prompt",
        "a dog",
        "--max-new-tokens",
        "5",
        "--batch-size",
        "2",
    )
    code, out, _ = shell("caption", saved, *files, "--json", "--device", "cpu", *options)
    assert code == 0
    lines = [json.loads(line) for line in out.split("\n")[:-1]]
    expected = model.candidates(files, num_beams=4, num_return=3, prompt="a dog", max_new_tokens=5)
    assert [row["file"] for row in lines] == files
    for row, candidates in zip(lines, expected, strict=True):
        assert [c["text"] for c in row["candidates"]] == [c.text for c in candidates]
        assert [c["score"] for c in row["candidates"]] == pytest.approx([c.score for c in candidates], abs=1e-4)


def test_caption_draws_with_a_seed_and_returns_several(
    shell: Shell, saved: Path, files: list[str], model: Predictor
) -> None:
    code, out, _ = shell("caption", saved, files[0], "--seed", "3", "--num-return", "2", "--json", "--device", "cpu")
    assert code == 0
    candidates = model.candidates(files[0], seed=3, num_return=2)
    assert [c["text"] for c in json.loads(out)["candidates"]] == [c.text for c in candidates]
    code, out, _ = shell("caption", saved, files[1], "--num-return", "2", "--device", "cpu")
    assert [line.split(": ")[0] for line in out.splitlines() if line.startswith(files[1])] == [files[1]] * 2


def test_caption_takes_parts_that_moved(
    shell: Shell, parts: dict[str, Path], files: list[str], tmp_path: Path, model: Predictor, monkeypatch: Any
) -> None:
    monkeypatch.setenv("MMPREFIX_CACHE", str(tmp_path / "cache"))  # where it is known that the same parts lie elsewhere
    copies = {name: Path(shutil.copytree(folder, tmp_path / "old" / name)) for name, folder in parts.items()}
    directory = tiny_models.save_model(tmp_path / "m", copies, "image", "audio")
    (tmp_path / "old").rename(tmp_path / "new")
    message = shell.refuses("caption", directory, *files)
    assert "the encoder of branch 'image' is not at" in message
    assert "--part image=PLACE" in message
    arguments = [word for name in parts for word in ("--part", f"{name}={tmp_path / 'new' / name}")]
    code, out, _ = shell("caption", directory, files[0], "--device", "cpu", *arguments)
    assert (code, out) == (0, f"{files[0]}: {model(files[0])}\n")
    assert "--part decoder: expected NAME=PLACE" in shell.refuses("caption", directory, files[0], "--part", "decoder")


# ------------------------------------------------------------------------------------------------------- errors


def test_files_that_cannot_be_read(shell: Shell, saved: Path, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("a picture of a cat")
    ogg = sound_bytes(tone(2.0, 300.0), container="OGG")
    (tmp_path / "cut.ogg").write_bytes(ogg[: len(ogg) * 2 // 3])
    (tmp_path / "empty.wav").write_bytes(b"")
    wrong = {
        "none.wav": "none.wav: no such file",
        "text.jpg": "text.jpg: not a picture that can be read",
        "cut.ogg": "cut.ogg: the sound is cut off",
        "empty.wav": "empty.wav: ",
        "all.zip::a.wav": "all.zip: no such file",
    }
    expected = shell("caption", saved, files[0], "--device", "cpu")[1]
    for name, message in wrong.items():
        assert message in shell.refuses("caption", saved, tmp_path / name, "--device", "cpu")
        code, out, err = shell("caption", saved, tmp_path / name, files[0], "--device", "cpu")
        assert (code, out) == (3, expected)
        lines = [line for line in err.splitlines() if "Loading weights" not in line]
        assert message in lines[0]
        assert lines[1:] == ["mmprefix: 1 of 2 inputs could not be read; the others are done"]


def test_folders_without_a_model(
    shell: Shell, saved: Path, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell.refuses("caption", tmp_path / "none", files[0]) == f"'{tmp_path}/none': no such folder"
    assert "is no saved model (it has no mmprefix.yaml)" in shell.refuses("caption", tmp_path, files[0])
    assert "is no saved model" in shell.refuses("caption", files[0], files[0])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = shell.refuses("caption", "someone/nothing", files[0])
    assert "'someone/nothing' is no folder here, and the model hub did not give it" in message
    assert "device 'quantum': cannot be used here" in shell.refuses("caption", saved, files[0], "--device", "quantum")


def test_wrong_usage_is_one_line_too(shell: Shell, saved: Path, files: list[str]) -> None:
    for words, message in (
        (["captoin"], "no verb 'captoin'; did you mean 'caption'?"),
        (["frobnicate"], "no verb 'frobnicate'; verbs: fit, validate"),
        (["--verbose"], "arguments: --verbose; did you mean '--version'?; see mmprefix --help"),
        (["caption"], "required: MODEL, INPUT; see mmprefix caption --help"),
        (["caption", str(saved), files[0], "--num-beam", "3"], "--num-beam 3; did you mean '--num-beams'?"),
        (["caption", str(saved), files[0], "--num-beams", "many"], "argument --num-beams: invalid int value: 'many'"),
        (["caption", str(saved), files[0], "--num-beams", "0"], "num_beams=0: must be at least 1"),
        (["caption", str(saved), files[0], "--num-beams", "2", "--num-return", "3"], "num_return=3"),
        (["caption", str(saved), files[0], "--batch-size", "0"], "batch_size 0: give a number from 1 on"),
        (["caption", str(saved), files[0], "--context", "x"], "--context: this model reads no context; leave it out"),
        (["caption", str(saved)], "no input given; give files, or --manifest FILE"),
        (["caption", str(saved), files[0], "--dtype", "int4"], "argument --dtype: invalid choice: 'int4'"),
        (["evaluate"], "required: PREDICTIONS.jsonl"),
        (["check-data"], "no manifest is named; give MANIFEST or --config RECIPE"),
    ):
        assert message in shell.refuses(*words)


def test_debug_shows_the_traceback(saved: Path) -> None:
    with pytest.raises(mmprefix.InputError, match="no such file") as error:
        main(["caption", str(saved), "none.wav", "--debug"])
    assert any("inputs.py" in str(entry.path) for entry in error.traceback)


def test_an_unexpected_failure_is_one_line_and_exit_code_1(
    shell: Shell, saved: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Predictor, *args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(Predictor, "stream", broken)
    code, out, err = shell("caption", saved, files[0], "--device", "cpu")
    lines = [line for line in err.splitlines() if line.strip() and "Loading weights" not in line]
    assert (code, out) == (1, "")
    assert lines == ["mmprefix: failed: ZeroDivisionError: division by zero (--debug shows the traceback)"]
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "caption", str(saved), files[0]])


@pytest.mark.parametrize(
    "words",
    [
        ("caption", "NAME", "x.wav"),
        ("import", "clipcap", "NAME", "out"),
        ("fit", "--config", "NAME"),
        ("check-data", "NAME"),
        ("evaluate", "NAME"),
    ],
)
def test_a_name_that_the_system_refuses_is_one_line(shell: Shell, words: tuple[str, ...]) -> None:
    """Python raises an OSError where it looks whether such a file exists."""
    shell.refuses(*("n" * 5000 if word == "NAME" else word for word in words))


def test_an_interrupt_ends_with_130(
    shell: Shell, saved: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "stream", stopped)
    monkeypatch.setattr(cli, "_run", stopped)
    assert shell("caption", saved, files[0]) == (130, "", "mmprefix: stopped\n")


def test_warnings_about_the_classes_of_torchao_are_not_shown(shell: Shell) -> None:
    """Transformers imports torchao where it is installed, and torch warns of its enums in every verb with a model."""
    assert shell("recipes")[0] == 0
    shown: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("torch.utils._pytree")
    handler.emit = lambda record: shown.append(record.getMessage())
    logger.addHandler(handler)
    try:
        logger.warning("<enum 'KernelPreference'> is an Enum subclass ...")
        logger.error("broken")
    finally:
        logger.removeHandler(handler)
    assert shown == ["broken"]


def test_errors_of_workers_lose_their_wrapping() -> None:
    wrapped = ValueError(
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback ...\nValueError: a.wav: x"
    )
    assert cli.plain(wrapped) == "a.wav: x"
    assert cli.plain(ValueError(" plain ")) == "plain"


def test_recipes_that_are_shipped_are_found_by_name(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = Path(mmprefix.__file__).parent / "recipes" / "esc10.yaml"
    for words in (["--config", "esc10"], ["--config", "recipes/esc10.yaml"], ["-c", "esc10.yaml"]):
        assert Path(cli.find_recipes(words)[1]) == shipped
        for name in ("methods/lopt", "recipes/methods/lopt.yaml"):
            assert Path(cli.find_recipes(["--config", name])[1]) == shipped.parent / "methods" / "lopt.yaml"
    assert cli.find_recipes(["--config=esc10", "--x", "y"]) == [f"--config={shipped}", "--x", "y"]
    (tmp_path / "esc10").write_text("")
    assert cli.find_recipes(["--config", "esc10"]) == ["--config", "esc10"]  # a file here comes first
    message = shell.refuses("fit", "--config", "recipes/nothing.yaml")
    assert message.startswith(
        "--config recipes/nothing.yaml: no such file; shipped recipes: alfred_steps, clipcap_mlp, clipcap_mlp_gpt2"
    )


# -------------------------------------------------------------------------------------- help, version, quick imports


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"mmprefix {mmprefix.__version__}\n"
    for words in (["--help"], []):
        with pytest.raises(SystemExit) as done:
            main(words)
        assert done.value.code == 0
        out = capsys.readouterr().out
        assert all(f"  {verb} " in out for verb in VERBS)
    for verb in ("caption", "understand", "detect", "transcribe", "evaluate", "distil", "check-data"):
        with pytest.raises(SystemExit) as done:
            main([verb, "--help"])
        assert done.value.code == 0
        assert f"usage: mmprefix {verb}" in capsys.readouterr().out


_WITHOUT_TORCH = """
import sys
before = set(sys.modules)
import mmprefix
loaded = len(set(sys.modules) - before)
from mmprefix.cli.main import main
codes = []
from mmprefix.cli.main import TRAINING, VERBS
verbs = [verb for verb in [*TRAINING, *VERBS] if verb not in ("import", "check-data")]
for words in (["--help"], *([verb, "--help"] for verb in verbs), ["nothing"]):
    try:
        codes.append(main(words))
    except SystemExit as done:
        codes.append(done.code)
heavy = {"torch", "transformers", "lightning", "PIL", "open_clip"} & set(sys.modules)
print("\\n", loaded, codes, sorted(heavy), file=sys.stderr)
"""


def test_import_and_help_load_no_torch() -> None:
    """A few modules for the import, none that is heavy for the help."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", _WITHOUT_TORCH]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=True)
    loaded, rest = done.stderr.splitlines()[-1].split(maxsplit=1)
    assert int(loaded) < 20  # 7 with Python 3.11
    verbs = {*cli.TRAINING, *cli.VERBS} - {"import", "check-data"}
    assert rest == f"{[*[0] * (1 + len(verbs)), 2]} []"
    trace = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import mmprefix"],
        env=env, capture_output=True, text=True, timeout=300, check=True,
    ).stderr  # fmt: skip
    loaded = {line.rsplit("|", 1)[1].strip() for line in trace.splitlines()}
    assert "mmprefix" in loaded
    assert not {"torch", "numpy", "transformers"} & loaded
