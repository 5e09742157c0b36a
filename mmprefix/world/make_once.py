"""Folders that are made whole, once, and reused where the same plan has made them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmprefix.atomic import write_directory_atomically
from mmprefix.errors import InputError


def make_once(
    directory: str | Path, name: str, plan: Mapping[str, Any], write: Callable[[Path], None], *, what: str
) -> Path:
    """Let ``write`` fill a fresh folder that becomes ``directory``, unless the same ``plan`` has made it before.

    The plan is kept in the file ``name`` of the folder. Raises InputError, with ``what`` the folder is for, where it
    holds other files.
    """
    directory = Path(directory)
    if directory.is_dir() and any(directory.iterdir()):
        if not (directory / name).is_file():
            raise InputError(f"{directory}: holds other files; give a new directory for the {what}")
        if json.loads((directory / name).read_text(encoding="utf-8")) == plan:
            return directory

    def write_all(fresh: Path) -> None:
        write(fresh)
        (fresh / name).write_text(json.dumps(plan), encoding="utf-8")

    write_directory_atomically(directory, write_all)
    return directory
