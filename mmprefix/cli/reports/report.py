"""``mmprefix report RUN``: the page of a run, drawn again from the files in its folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmprefix.errors import InputError

PAGE = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("run", metavar="RUN", help="folder of a run, such as runs/quickstart")
    parser.add_argument("--out", metavar="FILE", help=f"file to write (default: {PAGE} in the folder)")
    parser.add_argument("--megabytes", type=float, default=5.0, metavar="N", help="most of the page (default 5)")
    parser.add_argument("--cards", type=int, default=8, metavar="N", help="inputs under each title (default 8)")


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path; returns 0. Raises InputError for a folder that holds no run."""
    folder = Path(args.run)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give that of a run, such as runs/quickstart")
    from mmprefix.cli.reports.after_run import warning_signs
    from mmprefix.reports.run_report import ReportOptions, run_files, write_report

    files = run_files(folder)
    out = Path(args.out) if args.out else folder / PAGE
    write_report(files, out, ReportOptions(args.megabytes, args.cards), warning_signs(files))
    sys.stdout.write(f"{out}\n")
    return 0
