"""Systems on disk that many files of tests ask for: made once in a run of tests, copied to each that asks."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from tiny.untraced import untraced

RANDOM = ".random_state.pt"  # where making it leaves PyTorch's random numbers


def copy_of(name: str, folder: Path, make: Callable[[Path], object]) -> None:
    """Fill ``folder`` with what ``make`` makes in one: by the first process that asks for ``name``, copied by all.

    PyTorch's random numbers go on as they would after ``make``. Without the folder of a run of tests it is made anew.
    """
    root = os.environ.get("MMPREFIX_TEST_SYSTEMS")
    if root is None:
        make(folder)
        return
    kept = Path(root) / name
    with (Path(root) / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            fresh = Path(root) / f"{name}.{os.getpid()}"
            fresh.mkdir()
            untraced(make)(fresh)
            torch.save(torch.get_rng_state(), fresh / RANDOM)
            fresh.rename(kept)
    shutil.copytree(kept, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(RANDOM))
    torch.set_rng_state(torch.load(kept / RANDOM, weights_only=True))
