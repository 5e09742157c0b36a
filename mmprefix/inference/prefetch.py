"""Work that is done one piece ahead: files are read and decoded while the model computes on those before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Piece = TypeVar("Piece")
Made = TypeVar("Made")


def prefetch(make: Callable[[Piece], Made], pieces: Iterable[Piece]) -> Iterator[Made]:
    """``make`` of each piece in order; while one is in use the next is made, in a thread.

    What ``make`` raises is raised in its place; what was begun beyond it is let finish and forgotten.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="mmprefix-ahead") as pool:
        pending = None
        for piece in pieces:
            coming = pool.submit(make, piece)
            if pending is not None:
                yield pending.result()
            pending = coming
        if pending is not None:
            yield pending.result()
