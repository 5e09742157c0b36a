"""Page behind a fit or a test: when one is drawn, its warning signs, and that none of its faults ends a run."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from mmprefix.cli.reports.after_run import PAGE, draw_report, warning_signs
from mmprefix.reports.run_report import run_files


def trainer(**options: object) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(**{**quiet, "enable_model_summary": False, **options})  # pyright: ignore[reportArgumentType]


def options(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{"no_report": False, "report_megabytes": 2.0, **changes})


def write_rows(folder: Path, stage: str, **changes: object) -> Path:
    """Captions of a stage of a run whose model ignores its input and writes one text; ``changes``: of each row."""
    captions = folder / "logs/version_0/captions"
    captions.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"{n}", "group": "image", "media": "", "prediction": "a dog", "references": [f"thing {n} runs"]}
        | {"nll": 4.0, "nll_shuffled": 4.0, "tokens": 4, **changes}
        for n in range(6)
    ]
    file = captions / f"{stage}-step4.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_page_is_drawn_and_named_as_the_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_rows(tmp_path, "val")
    with caplog.at_level(logging.INFO):
        draw_report(tmp_path, trainer(), options())
    (record,) = [record for record in caplog.records if record.name.startswith("mmprefix")]
    assert record.getMessage() == f"report: {tmp_path / PAGE}"
    assert vars(record)["result"] is True  # the console writes it to standard output
    text = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "The model ignores its image input" in text
    assert "one and the same caption for all 6 image inputs" in text


def test_signs_of_the_test_say_so(tmp_path: Path) -> None:
    write_rows(tmp_path, "val", nll_shuffled=8.0)
    write_rows(tmp_path, "test")
    signs = warning_signs(run_files(tmp_path))
    assert sum(sign.startswith("The model writes one and the same") for sign in signs) == 1
    assert any(sign.startswith("test: The model ignores its image input") for sign in signs)
    assert not any(sign.startswith("The model ignores") for sign in signs)


@pytest.mark.parametrize("reason", ["no_report", "fast_dev_run"])
def test_no_page_is_drawn_where_none_is_wanted(reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_rows(tmp_path, "val")
    runner = trainer(fast_dev_run=reason == "fast_dev_run")
    caplog.clear()
    draw_report(tmp_path, runner, options(no_report=reason == "no_report"))
    assert not (tmp_path / PAGE).exists()
    assert not [record for record in caplog.records if record.name.startswith("mmprefix")]


@pytest.mark.parametrize("fault", ["no captions", "no row", "size"])
def test_a_page_that_cannot_be_drawn_is_one_warning(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if fault != "no captions":
        file = write_rows(tmp_path, "val")
        if fault == "no row":
            file.write_text('{"id": "1", "prediction": "half a ro')
    draw_report(tmp_path, trainer(), options(report_megabytes=0.0 if fault == "size" else 2.0))
    (record,) = [record for record in caplog.records if record.name.startswith("mmprefix")]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"no report: {tmp_path / PAGE} could not be drawn (")
    assert not (tmp_path / PAGE).exists()
