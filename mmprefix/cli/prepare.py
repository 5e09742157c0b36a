"""``mmprefix prepare SOURCE --out DIR``: own files and captions, or a known data set → manifests."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

_PROGRAMS = "mmprefix.recipes.prepare"
DATASETS = {  # name → program
    "attend2u": "personal.attend2u",
    "audiocaps": "audiocaps",
    "clotho": "clotho",
    "coco": "coco",
    "conceptual_captions": "conceptual_captions",
    "flickr_style": "personal.flickr_style",
    "fluent_speech_commands": "fluent_speech_commands",
    "personal": "personal.users",
    "personality_captions": "personal.personality_captions",
    "slurp": "slurp",
    "speech_commands": "speech_commands",
}


def run_data_set(words: Sequence[str]) -> int | None:
    """Prepare the known data set that the first of ``words`` names; None where it names none.

    A folder of your own with such a name is written ./NAME.
    """
    name = words[0].replace("-", "_") if words else ""
    if name not in DATASETS:
        return None
    importlib.import_module(f"{_PROGRAMS}.{DATASETS[name]}").prepare(list(words[1:]))
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for own data."""
    importlib.import_module(f"{_PROGRAMS}.own_data").add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write train.jsonl, val.jsonl and missing.txt; returns 0."""
    importlib.import_module(f"{_PROGRAMS}.own_data").prepare(args)
    return 0
