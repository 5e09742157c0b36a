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


def find_folder(names: Sequence[str], near: str | Path) -> Path | None:
    """Folder under which the first of ``names`` exists, relative to the working directory where it is below it.

    Below ``near``, below its parent and below the working directory are tried, nearest first; None where it is in none.
    """
    name = names[0].partition(SEPARATOR)[0] if names else ""
    if not name or os.path.isabs(name):
        return None
    for folder in _folders([Path(near), Path(near).parent, Path()]):
        try:
            if (folder / name).exists():
                return folder
        except OSError:  # a name that no disk can hold
            return None
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
