"""Search for the folder that holds files which a table names, where they are not beside the table."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmprefix.media.source import SEPARATOR

_DEPTH = 3  # folders below the place where the search starts
_FOLDERS = 2000  # folders looked into at most: the search is for a hint, and must end soon
_ENTRIES = 100_000  # names read at most
_SAMPLE = 5  # names looked for in each folder


def find_folder(names: Sequence[str], near: str | Path) -> Path | None:
    """Folder under which half of ``names`` exist, or more, relative to the working directory where it is below it.

    A few of the names are looked for. Below ``near``, below its parent and below the working directory are tried,
    nearest first; None where they are in none.
    """
    files = [name for path in names if (name := path.partition(SEPARATOR)[0]) and not os.path.isabs(name)]
    sample = files[:: max(1, len(files) // _SAMPLE)][:_SAMPLE]
    for folder in _folders([Path(near), Path(near).parent, Path()]) if sample else ():
        if 2 * sum(os.path.exists(folder / name) for name in sample) >= len(sample):  # False for names of no disk
            return folder
    return None


def _folders(starts: Sequence[Path]) -> Iterator[Path]:
    """Folders below ``starts``, those of one depth before those of the next, each once."""
    seen: set[str] = set()
    entries = 0
    for start in starts:
        queue = deque([(start, 0)])
        while queue:
            folder, depth = queue.popleft()
            if (real := os.path.realpath(folder)) in seen or len(seen) >= _FOLDERS or entries >= _ENTRIES:
                continue
            seen.add(real)
            yield folder
            if depth == _DEPTH:
                continue
            try:
                with os.scandir(folder) as inside:
                    names = list(inside)
            except OSError:
                continue
            entries += len(names)
            below = sorted(entry.name for entry in names if entry.is_dir() and not entry.name.startswith("."))
            queue.extend((folder / name, depth + 1) for name in below)
