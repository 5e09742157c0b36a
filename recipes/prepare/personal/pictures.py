"""Pictures of a folder by their names in a data set, which may lack an ending."""

from __future__ import annotations

import os
from pathlib import Path

from mmprefix.errors import InputError
from mmprefix.recipes.prepare import tables


class PictureFolder:
    """Files of ``folder``, listed once, sought by name with or without the ending of a picture.

    Raises InputError where the folder cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of pictures; --pictures names another")
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise tables.refusal(folder, error) from error
        self._paths = {name: f"{folder}/{name}" for name in names}
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending.lower() in tables.PICTURES:  # a user's name may hold a dot as well
                self._paths.setdefault(stem, f"{folder}/{name}")

    def find(self, name: str) -> str | None:
        """Path of the picture ``name``; None where there is none."""
        return self._paths.get(name)
