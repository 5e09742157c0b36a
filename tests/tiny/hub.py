"""Cache of the model hub's client, on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_model(cache: Path, name: str, folder: Path) -> None:
    """Copy the model in ``folder`` into ``cache``, as the hub's client stores the repository ``name``."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
