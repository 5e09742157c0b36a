"""Small copy of Clotho, for the tests of its program and of all programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny.datasets import (
    CLOTHO_COLUMNS,
    CLOTHO_TEXTS,
    write_sound,
    write_table,
)


@pytest.fixture
def clotho(tmp_path: Path) -> Path:
    """Folder of three splits with five captions a sound; names with spaces, commas and umlauts."""
    root = tmp_path / "clotho"
    names = {
        "development": [" rain &amp; wind.wav", "a,b.wav", "Bücher.wav"],
        "validation": ["v.wav"],
        "evaluation": ["e.wav"],
    }
    folders = {"development": "development", "validation": "clotho_audio_validation/validation"}
    for split, files in names.items():
        for file in files:
            write_sound(root / folders.get(split, f"clotho_audio_{split}") / file, 16)
        encoding = "utf-8-sig" if split == "development" else "utf-8"
        rows = [[file, *CLOTHO_TEXTS] for file in files]
        write_table(root / f"clotho_captions_{split}.csv", ["file_name", *CLOTHO_COLUMNS], rows, encoding)
    return root
