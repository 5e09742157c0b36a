"""Options ``--neighbours`` and ``--agreement``: captions of the inputs most like another one help to write its text."""

from __future__ import annotations

import argparse


def add_neighbours(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the option for a file of neighbours, which ``open_model`` reads; returns the group of such options."""
    group = parser.add_argument_group("neighbours", "Captions of the inputs most like each one (docs/neighbours.md).")
    group.add_argument(
        "--neighbours",
        metavar="FILE",
        help="of several beams (at least 5, or --num-beams) take the text that agrees most with captions in this file; "
        "a model that reads a context is given some of them",
    )
    return group


def add_agreement(group: argparse._ArgumentGroup) -> None:
    """Add the option for the weight of the agreement."""
    group.add_argument(
        "--agreement",
        type=float,
        metavar="X",
        help="weight of that agreement beside a text's score (default 3, 0: none)",
    )
