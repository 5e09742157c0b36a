"""Output of a training: what a person needs on the terminal, messages of libraries in the run's ``log.txt``."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import warnings
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

from mmprefix import InputError
from mmprefix.cli.main import TRAINING, VERBS, main
from mmprefix.cli.training.console import (
    LIBRARIES,
    RunConsole,
    library_messages_to_file,
    open_run_log,
    split_verbose,
)
from mmprefix.cli.training.run_folder import MESSAGES as FILE
from tiny.captioning_system import CaptioningSystem, quietly

pytestmark = list(quietly)


def fit(tiny: CaptioningSystem, root: Path, *words: str) -> int:
    """Exit code of one epoch of the tiny recipe, with the console and progress of a person's own recipe."""
    config = tiny.config(("audio",))
    config["trainer"] |= {"default_root_dir": str(root), "max_epochs": 1}
    for option in ("enable_progress_bar", "enable_model_summary"):
        config["trainer"].pop(option, None)
    recipe = root.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(config, sort_keys=False))
    return main(["fit", str(recipe), *words])


def test_a_fit_shows_what_a_person_needs(
    tiny: CaptioningSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    assert fit(tiny, root) == 0
    out, err = capsys.readouterr()
    assert out == f"saved the model: {root / 'model'}\n"  # the result alone; what follows is the log
    manifest = (tiny.folder / "train.jsonl").read_text().splitlines()
    rows = sum("audio" in json.loads(line) for line in manifest)
    assert re.search(rf"^data: train {rows}, val \d+$", err, re.MULTILINE)
    assert re.search(r"^audio encoder +Cnn +[\d,]+ +0$", err, re.MULTILINE)
    assert re.search(r"^decoder +CausalDecoder +[\d,]+ +0$", err, re.MULTILINE)
    once = [line for line in err.splitlines() if re.search(rf"{re.escape(str(root))}(?![/\w])", line)]
    assert once == [f"run: {root} ({FILE} holds messages of libraries)"]
    assert re.search(r"^epoch 1/1, step \d+, train/loss \d+\.\d{3}, lr \S+, \d+ s$", err, re.MULTILINE)
    assert f"last checkpoint: {root / 'checkpoints' / 'last.ckpt'}\n" in err
    assert "FLOPs" not in err
    assert "GPU available" not in err
    text = (root / FILE).read_text(encoding="utf-8")
    assert "weights stored as" not in err
    for line in ("GPU available: False", "Seed set to", "last checkpoint: ", "weights stored as "):
        assert line in text


def test_an_epoch_that_a_run_goes_on_with_in_its_middle_has_its_own_seconds(
    tiny: CaptioningSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"

    def press_ctrl_c(console: RunConsole, trainer: Trainer, *rest: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(RunConsole, "on_train_batch_end", press_ctrl_c, raising=False)
        assert fit(tiny, root) == 130  # behind the first of two steps
    capsys.readouterr()
    assert fit(tiny, root, "--ckpt_path", "last") == 0
    seconds = re.findall(r"^epoch 1/1, step \d+, .* (\d+) s$", capsys.readouterr().err, re.MULTILINE)
    assert len(seconds) == 1
    assert int(seconds[0]) < 300  # not those since the machine was started


def test_verbose_shows_messages_of_libraries_too(
    tiny: CaptioningSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tiny, tmp_path / "run", "--verbose") == 0
    assert "GPU available: False" in capsys.readouterr().err
    assert "GPU available: False" in (tmp_path / "run" / FILE).read_text(encoding="utf-8")


def test_a_dry_run_writes_no_log(tiny: CaptioningSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tiny, tmp_path / "run", "--dry-run") == 0
    assert not (tmp_path / "run" / FILE).exists()
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"^decoder +CausalDecoder +[\d,]+ +0$", out, re.MULTILINE)  # its result


@pytest.mark.parametrize("name", LIBRARIES)
def test_errors_of_libraries_reach_the_terminal(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger(name)
    before = (list(logger.handlers), logger.propagate)
    with library_messages_to_file(verbose=False):
        logger.warning("a warning before the folder is known")
        open_run_log(tmp_path)
        logger.warning("a later warning")
        logger.error("an error")
    assert (list(logger.handlers), logger.propagate) == before
    assert capsys.readouterr().err == "an error\n"
    lines = (tmp_path / FILE).read_text(encoding="utf-8").splitlines()
    assert [line.split(f"{name}: ")[1] for line in lines] == [
        "a warning before the folder is known",
        "a later warning",
        "an error",
    ]


def test_warnings_of_python_go_to_the_file_and_come_back_after(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with library_messages_to_file(verbose=False):
            open_run_log(tmp_path)
            warnings.warn("of a library", stacklevel=1)
        assert shown == []
        warnings.warn("of later", stacklevel=1)
        assert [str(warning.message) for warning in shown] == ["of later"]
    assert "of a library" in (tmp_path / FILE).read_text(encoding="utf-8")


def test_a_log_is_continued_by_the_next_run(tmp_path: Path) -> None:
    for message in ("first", "second"):
        with library_messages_to_file(verbose=False):
            open_run_log(tmp_path)
            logging.getLogger("lightning.pytorch").info(message)
    lines = (tmp_path / FILE).read_text(encoding="utf-8").splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["first", "second"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        library_messages_to_file(verbose=False),
        pytest.raises(InputError, match=rf"file/run/{FILE}: cannot be written \(Not a directory\)"),
    ):
        open_run_log(tmp_path / "file" / "run")


def test_verbose_is_taken_from_the_words() -> None:
    assert split_verbose(["fit", "--verbose", "--x", "1"]) == (True, ["fit", "--x", "1"])
    assert split_verbose(["fit", "--x", "--verbose=no"]) == (False, ["fit", "--x", "--verbose=no"])


@pytest.mark.parametrize("verb", [*TRAINING, *VERBS, "check_data"])
def test_the_log_of_the_library_does_not_come_between_rows(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Verbs that train, ``import`` and ``prepare`` show it, on standard error; warnings are shown always."""
    assert main([verb, "--no-such-option"]) == 2
    capsys.readouterr()
    log = logging.getLogger("mmprefix.weights.transformers")
    log.info("weights are used as float32")
    log.warning("a warning")
    shown = "weights are used as float32\n" if verb in (*TRAINING, "import", "prepare", "distil", "demo") else ""
    assert capsys.readouterr() == ("", f"{shown}a warning\n")
    log.info("a result", extra={"result": True})
    assert capsys.readouterr() == ("a result\n" if shown else "", "")
