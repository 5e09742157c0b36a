"""State of all random generators: a resumed run draws what the uninterrupted one would have drawn."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mmprefix.errors import InputError


def gather_rng_states(own: dict[str, Any]) -> list[dict[str, Any]]:
    """State of each process, by its rank; ``own`` is this one's. All processes must call it: it communicates."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    states: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(states, own)
    return states


def rng_state() -> dict[str, Any]:
    """State of the generators of Python, NumPy and torch, and of all GPUs."""
    version, keys, gauss = random.getstate()
    kind, words, position, has, value = np.random.get_state()  # noqa: NPY002 (the global one is what others draw from)
    return {
        "python": [version, list(keys), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(words).astype(np.int64)), position, has, value],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def check_rng_state(state: Any, file: Path | str) -> None:
    """Raise InputError where ``state``, read from ``file``, is none that ``restore_rng_state`` can set."""
    before = rng_state()
    try:
        restore_rng_state(state)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{file}: the state of its random generators cannot be read; it was changed") from error
    finally:
        restore_rng_state(before)


def restore_rng_state(state: dict[str, Any]) -> None:
    """Undo every draw since ``rng_state()`` was called."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, words, position, has, value = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), position, has, value))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
