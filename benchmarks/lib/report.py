"""Output shared by the benchmarks: command line, Markdown table, versions, JSON file."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def benchmark_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module docstring ``doc``, with the option ``--json``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="file for all figures, each repetition included")
    return parser


def publish(results: Mapping[str, Any] | Sequence[Any], text: str, file: str | None) -> None:
    """Print ``text``, and write ``results`` to the JSON ``file`` if there is one."""
    print(text)
    if file:
        Path(file).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def options_of(options: argparse.Namespace) -> dict[str, Any]:
    """Options that a figure depends on: all but the file that is written."""
    return {name: value for name, value in vars(options).items() if name != "json"}


def versions() -> dict[str, str]:
    """Versions of Python and the libraries, and the name of the GPU: what a figure depends on beside the code."""
    card = {"GPU": torch.cuda.get_device_name().removeprefix("NVIDIA ")} if torch.cuda.is_available() else {}
    libraries = {name: version(name) for name in ("torch", "transformers")}
    return {"python": platform.python_version(), **libraries, **card}


def join_versions(results: Mapping[str, Any]) -> str:
    """The versions noted in ``results``, on one line."""
    return ", ".join(" ".join(pair) for pair in results.get("versions", {}).items())


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, the first column flush left and the others flush right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        padded = [c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * w) if not i else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])
