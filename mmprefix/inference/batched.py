"""Any number of inputs in batches: files are decoded one window ahead, inputs of one kind and like length go together.

The results come in the order of the inputs, and equal those of one input at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from mmprefix.data.collate import collate_inputs, pad_media
from mmprefix.errors import InputError, without_frames
from mmprefix.inference.inputs import (
    Input,
    InputSource,
    assign_to_branches,
    input_kinds,
    require_urls_allowed,
    source_and_span,
    urls_in,
)
from mmprefix.inference.urls import downloaded, with_url
from mmprefix.media.source import Texts
from mmprefix.model import PrefixLM
from mmprefix.types import Batch, FeatureRow

Item = TypeVar("Item")
Result = TypeVar("Result")
Row = dict[str, Tensor | FeatureRow]
"""Inputs of a row, read or encoded before, by branch name."""
WINDOW_BATCHES = 8  # batches whose files are decoded, and sorted by length, together


@dataclass(frozen=True)
class BatchRequest:
    """Inputs, and for each of them its prompt, its context and the target texts to score, if any.

    ``first`` is the number of the first input, counted over all requests of a stream. ``texts`` are read beside each
    input, by branch, and ``features`` need not be read any more; none where they are empty. ``histories`` are earlier
    texts of each input's user that stand in its prompt.
    """

    inputs: Sequence[Input]
    prompts: Sequence[str]
    contexts: Sequence[str]
    targets: Sequence[list[str]]
    batch_size: int
    allow_urls: bool = False
    first: int = 0
    texts: Sequence[Mapping[str, Texts]] = ()
    features: Sequence[Mapping[str, FeatureRow]] = ()
    histories: Sequence[Sequence[str]] = ()

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size {self.batch_size}: give a number from 1 on")

    def windows(self) -> Iterator[BatchRequest]:
        """Parts of the request whose files are decoded, and sorted by length, together."""
        step = self.batch_size * WINDOW_BATCHES
        for start in range(0, len(self.inputs), step):
            part = slice(start, start + step)
            prompts, contexts, targets = self.prompts[part], self.contexts[part], self.targets[part]
            words = {"prompts": prompts, "contexts": contexts, "targets": targets}
            texts, features, histories = self.texts[part], self.features[part], self.histories[part]
            beside = {"texts": texts, "features": features, "histories": histories}
            yield replace(self, inputs=self.inputs[part], first=self.first + start, **words, **beside)


@dataclass(frozen=True)
class _Window:
    """Decoded request: by row its tensors by branch name, the sound to transcribe, or why it could not be read."""

    request: BatchRequest
    contexts: list[str]
    tensors: dict[int, Row] = field(default_factory=dict[int, Row])
    sounds: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    errors: dict[int, InputError] = field(default_factory=dict[int, InputError])


def run_batched(model: PrefixLM, request: BatchRequest, compute: Callable[[Batch], list[Result]]) -> list[Result]:
    """Runs ``compute`` (a batch → a result an input) over batches of at most ``batch_size`` inputs.

    The files of ``WINDOW_BATCHES`` batches are decoded while the model computes on those before. An input without
    context gets one where the model has a transcriber. Raises InputError for an input that cannot be read, by name.
    """
    _require_readable(model, request)
    results: list[Result] = []
    parts, decode = list(request.windows()), partial(_decode, model, strict=True)
    # nothing is read ahead of one window: no thread is started for it
    windows: Iterable[_Window] = map(decode, parts) if len(parts) == 1 else prefetch(decode, parts)
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
    window = _decode(model, request, strict=True)
    _transcribe(model, window)
    yield from compute(_batch(model, window, [0]))


def _require_readable(model: PrefixLM, request: BatchRequest) -> None:
    """Raise InputError for inputs that no branch reads, before anything is decoded or computed."""
    for row, value in enumerate(request.inputs):
        require_urls_allowed(value, request.allow_urls)
        if not urls_in(value):
            _sources_of(model, request, row)


def stream_batched(
    model: PrefixLM, requests: Iterable[BatchRequest], compute: Callable[[Batch], list[Result]]
) -> Iterator[Result | InputError]:
    """Yields the results of ``run_batched`` request by request, as they come, in the order of the inputs.

    An input that cannot be read has its InputError in the place of its result, and does not end the others. Raises
    InputError where all inputs of a batch fail for one reason, such as an option that does not fit the model.
    """
    for window in prefetch(partial(_decode, model, strict=False), requests):
        rows = _compute(model, window, compute, strict=False)
        yield from (rows[row] if row in rows else window.errors[row] for row in range(len(window.request.inputs)))


def _decode(model: PrefixLM, request: BatchRequest, strict: bool) -> _Window:
    """Tensors of every input of ``request``; without ``strict`` the errors of those that cannot be read."""
    window = _Window(request, list(request.contexts))
    for row, value in enumerate(request.inputs):
        try:
            sources = _sources_of(model, request, row)
            if model.transcriber is not None and "audio" in sources and not window.contexts[row]:
                window.sounds[row] = model.transcriber.preprocess(*source_and_span(sources["audio"]))
            ready: Mapping[str, FeatureRow] = request.features[row] if request.features else {}
            window.tensors[row] = dict(sorted({**ready, **_preprocess(model, sources)}.items()))
        except Exception as error:
            if strict:  # no name is bound to what is raised: in this frame it would be a cycle, and the inputs stay
                raise (with_url(error, value) if isinstance(error, InputError) else error) from error.__cause__
            fault = with_url(error, value) if isinstance(error, InputError) else _unexpected(request, row, error)
            window.errors[row] = without_frames(fault)
    return window


def _compute(
    model: PrefixLM, window: _Window, compute: Callable[[Batch], list[Result]], strict: bool
) -> dict[int, Result]:
    """Result of each row that was decoded; without ``strict`` rows that fail alone are added to the window's errors."""
    _transcribe(model, window)
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
    model: PrefixLM, window: _Window, rows: list[int], compute: Callable[[Batch], list[Result]]
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


def _run(model: PrefixLM, window: _Window, rows: list[int], compute: Callable[[Batch], list[Result]]) -> list[Result]:
    """Results of one batch, the ``rows`` of ``window``."""
    with torch.inference_mode():
        return compute(_batch(model, window, rows))


def _batch(model: PrefixLM, window: _Window, rows: list[int]) -> Batch:
    """The ``rows`` of ``window`` on the model's device."""
    request, tensors = window.request, window.tensors
    batch = Batch(
        {name: collate_inputs([tensors[row][name] for row in rows]) for name in tensors[rows[0]]},
        [request.prompts[row] for row in rows],
        [request.targets[row] for row in rows],
        [model.wording.with_history(_history(request, row), window.contexts[row]) for row in rows],
        [str(row) for row in rows],
    )
    return batch.to(next(model.parameters()).device)


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


def _sources_of(model: PrefixLM, request: BatchRequest, number: int) -> dict[str, InputSource]:
    """The sources of one input by branch name; none where a context stands alone."""
    value = request.inputs[number]
    empty = isinstance(value, dict) and not value
    beside: Mapping[str, Texts] = request.texts[number] if request.texts else {}
    require_urls_allowed(value, request.allow_urls)
    if beside or (request.features and request.features[number]):
        own = {} if empty else assign_to_branches(downloaded(value) if urls_in(value) else value, input_kinds(model))
        return {**beside, **own}
    if empty and not model.encoders and not model.reads_text:
        return {}  # a model without branches writes from nothing but a prompt
    if not empty or not model.reads_text:
        return assign_to_branches(downloaded(value) if urls_in(value) else value, input_kinds(model))
    if not request.contexts[number] and not _history(request, number):
        raise InputError(f"input {request.first + number + 1}: has neither a file nor a context; give one of them")
    return {}


def _history(request: BatchRequest, number: int) -> Sequence[str]:
    return request.histories[number] if request.histories else ()


def _unexpected(request: BatchRequest, row: int, error: Exception) -> InputError:
    """A fault of a reader that nobody foresaw: one input's, not the end of all others."""
    value = request.inputs[row]
    name = value if isinstance(value, str | Path) else f"input {request.first + row + 1}"
    return InputError(f"{name}: cannot be read ({type(error).__name__}: {error})")


def _preprocess(model: PrefixLM, sources: Mapping[str, InputSource]) -> dict[str, Tensor]:
    """Sources by branch name → waveforms (S,) and pictures (3 Y X)."""
    names = sorted(sources.keys() & set(model.encoders))
    return {name: model.encoder(name).preprocess(*source_and_span(sources[name])) for name in names}


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


def _transcribe(model: PrefixLM, window: _Window, size: int = 8) -> None:
    """Writes the transcripts of the window's sounds into its contexts, where the model has a transcriber."""
    transcriber, sounds = model.transcriber, window.sounds
    if transcriber is None or not sounds:
        return
    device = next(model.parameters()).device
    order = sorted(sounds.keys() & window.tensors.keys(), key=lambda row: len(sounds[row]))
    for rows in (order[start : start + size] for start in range(0, len(order), size)):
        transcripts = transcriber(pad_media([sounds[row] for row in rows]).to(device))
        for row, transcript in zip(rows, transcripts, strict=True):
            window.contexts[row] = transcript.text
