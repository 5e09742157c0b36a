"""Any number of inputs in batches: files are decoded one window ahead, inputs of one kind and like length go together.

The results come in the order of the inputs, and equal those of one input at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from mmprefix.errors import InputError, without_frames
from mmprefix.inference.batches.request import BatchRequest
from mmprefix.inference.batches.window import Row, Window, batch_of, decode, sources_of, transcribe
from mmprefix.inference.inputs import require_urls_allowed, urls_in
from mmprefix.model import PrefixLM
from mmprefix.types import Batch, FeatureRow

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_batched(model: PrefixLM, request: BatchRequest, compute: Callable[[Batch], list[Result]]) -> list[Result]:
    """Runs ``compute`` (a batch → a result an input) over batches of at most ``batch_size`` inputs.

    The files of ``WINDOW_BATCHES`` batches are decoded while the model computes on those before. An input without
    context gets one where the model has a transcriber. Raises InputError for an input that cannot be read, by name.
    """
    _require_readable(model, request)
    results: list[Result] = []
    parts, read = list(request.windows()), partial(decode, model, strict=True)
    # nothing is read ahead of one window: no thread is started for it
    windows: Iterable[Window] = map(read, parts) if len(parts) == 1 else prefetch(read, parts)
    for window in windows:
        rows = _compute(model, window, compute, strict=True)
        results += [rows[row] for row in range(len(rows))]
    return results


@torch.inference_mode()  # as a decorator it is entered with each piece, in whatever thread asks for it
def stream_pieces(
    model: PrefixLM, request: BatchRequest, compute: Callable[[Batch], Iterator[str]]
) -> Generator[str, None, None]:
    """Yields what ``compute`` does for the one input of ``request``; an input that cannot be read raises as above."""
    _require_readable(model, request)
    window = decode(model, request, strict=True)
    transcribe(model, window)
    yield from compute(batch_of(model, window, [0]))


def _require_readable(model: PrefixLM, request: BatchRequest) -> None:
    """Raise InputError for inputs that no branch reads, before anything is decoded or computed."""
    for row, value in enumerate(request.inputs):
        require_urls_allowed(value, request.allow_urls)
        if not urls_in(value):
            sources_of(model, request, row)


def stream_batched(
    model: PrefixLM, requests: Iterable[BatchRequest], compute: Callable[[Batch], list[Result]]
) -> Iterator[Result | InputError]:
    """Yields the results of ``run_batched`` request by request, as they come, in the order of the inputs.

    An input that cannot be read has its InputError in the place of its result, and does not end the others. Raises
    InputError where all inputs of a batch fail for one reason, such as an option that does not fit the model.
    """
    for window in prefetch(partial(decode, model, strict=False), requests):
        rows = _compute(model, window, compute, strict=False)
        yield from (rows[row] if row in rows else window.errors[row] for row in range(len(window.request.inputs)))


def _compute(
    model: PrefixLM, window: Window, compute: Callable[[Batch], list[Result]], strict: bool
) -> dict[int, Result]:
    """Result of each row that was decoded; without ``strict`` rows that fail alone are added to the window's errors."""
    transcribe(model, window)
    results: dict[int, Result] = {}
    for rows in _alike(window.tensors, window.request.batch_size):
        try:
            results.update(zip(rows, _run(model, window, rows, compute), strict=True))
        except InputError:
            if strict:
                raise
            results.update(_one_by_one(model, window, rows, compute))
    return results


def _one_by_one(
    model: PrefixLM, window: Window, rows: list[int], compute: Callable[[Batch], list[Result]]
) -> dict[int, Result]:
    """Results of the rows of a batch that was refused, each alone; InputError where all fail for one reason."""
    results: dict[int, Result] = {}
    for row in rows:
        try:
            results[row] = _run(model, window, [row], compute)[0]
        except InputError as error:
            window.errors[row] = without_frames(error)
    if not results and len(rows) > 1 and len({str(window.errors[row]) for row in rows}) == 1:
        raise window.errors.pop(rows[0])
    return results


def _run(model: PrefixLM, window: Window, rows: list[int], compute: Callable[[Batch], list[Result]]) -> list[Result]:
    """Results of one batch, the ``rows`` of ``window``."""
    with torch.inference_mode():
        return compute(batch_of(model, window, rows))


def prefetch(make: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yields ``make(item)`` of each item in order; while one result is in use the next is made, in a thread.

    An error in ``make`` is raised where its result would come; work that was begun beyond it is finished and dropped.
    """
    pending: deque[Future[Result]] = deque()  # one that is taken out leaves no name: its error would hold itself
    with ThreadPoolExecutor(1, thread_name_prefix="mmprefix-prefetch") as pool:
        for item in items:
            pending.append(pool.submit(make, item))
            if len(pending) > 1:
                yield pending.popleft().result()
        if pending:
            yield pending.popleft().result()


def _alike(tensors: Mapping[int, Row], size: int) -> Iterator[list[int]]:
    """Rows with inputs for the same branches, the shortest first, at most ``size`` at a time."""
    order = sorted(tensors, key=lambda row: (_forms(tensors[row]), [_length(value) for value in tensors[row].values()]))
    for _, group in groupby(order, key=lambda row: _forms(tensors[row])):
        rows = list(group)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _forms(row: Row) -> list[tuple[str, bool]]:
    """Branches that a row has inputs for, and which of them are encoded already."""
    return [(name, isinstance(value, FeatureRow)) for name, value in row.items()]


def _length(value: Tensor | FeatureRow) -> int:
    return len(value.frames) if isinstance(value, FeatureRow) else value.shape[-1]
