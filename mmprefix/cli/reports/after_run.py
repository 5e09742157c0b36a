"""Report behind a fit or a test: ``report.html`` in the run's folder. A page that cannot be drawn fails no run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from mmprefix.reports.run_report import ReportOptions, RunFiles, run_files, write_report
from mmprefix.training.report import Report, ValidationRow

log = logging.getLogger(__name__)
PAGE = "report.html"


def draw_report(folder: Path, trainer: Trainer, options: Any) -> None:
    """Write the page of the run in ``folder`` and say where it is; one warning where that fails."""
    if options.no_report or getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero:
        return
    out = folder / PAGE
    try:
        files = run_files(folder)
        write_report(files, out, ReportOptions(options.report_megabytes), warning_signs(files))
    except Exception as error:
        log.warning("no report: %s could not be drawn (%s: %s)", out, type(error).__name__, error)
        return
    log.info("report: %s", out, extra={"result": True})


def warning_signs(files: RunFiles) -> list[str]:
    """Sentences that the newest validation and test of a run give cause for; those of its log are not among them."""
    signs: list[str] = []
    for stage, file in files.captions.items():
        rows = _rows(file)
        for text in Report(rows, files.target).warnings() if rows else ():
            signs.append(text if stage == "val" else f"{stage}: {text}")
    return signs


def _rows(file: Path) -> list[ValidationRow]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [ValidationRow(**json.loads(line)) for line in lines if line.strip()]
