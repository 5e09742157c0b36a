"""Reading and writing of Lightning's checkpoints: whole or not at all, and only those of mmprefix."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from mmprefix.atomic import disk_errors_as_input_errors, write_atomically
from mmprefix.errors import InputError
from mmprefix.saved_model import require_ours


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints written under a temporary name and renamed: a crash or full disk leaves the previous file whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``; InputError where the disk refuses."""
        file = Path(path)
        with disk_errors_as_input_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda fresh: _write(checkpoint, fresh))

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, place: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values only (a stranger's file runs no code), unless ``weights_only`` is False.

        Raises InputError for a file that is missing, damaged, or of another program.
        """
        try:
            _require_whole(Path(path))
            checkpoint = super().load_checkpoint(path, map_location, weights_only is not False)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such checkpoint") from error
        except InputError:
            raise
        except Exception as error:  # torch.load raises a dozen kinds; all mean that the file is no checkpoint of ours
            raise InputError(f"{path}: is no checkpoint that can be read ({_reason(error)})") from error
        if Path(path).name != ".temp.ckpt":  # in which Lightning returns the weights from processes it forked
            require_ours(checkpoint, path)
        return checkpoint


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["it is empty or cut off"])[0]


def _require_whole(file: Path) -> None:
    """Raise InputError for an archive of ``torch.save`` that does not hold what was written: torch does not compare."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        if member := archive.testzip():
            raise InputError(f"{file}: is damaged ({member} is not what was written); take another checkpoint")


def _write(checkpoint: dict[str, Any], file: Path) -> None:
    with file.open("wb") as stream:  # with a path, torch hides that the disk refused
        torch.save(checkpoint, stream)
