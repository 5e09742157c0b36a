"""Options that bound what strangers may ask for: a table, and the arguments that it stands for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple


class LimitOption(NamedTuple):
    """An option with a number: its name with hyphens, type, default, metavar, and a sentence for its help."""

    name: str
    kind: type
    default: float
    metavar: str
    sentence: str

    @property
    def destination(self) -> str:
        """Name of its value in the parsed arguments."""
        return self.name.replace("-", "_")


def add_limits(group: argparse._ActionsContainer, options: Sequence[LimitOption]) -> None:
    """Add ``options`` to ``group``; the help of each ends with its default."""
    for name, kind, default, metavar, sentence in options:
        text = f"{sentence} (default {default:,g})"
        group.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=text)
