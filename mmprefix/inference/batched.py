"""Any number of inputs in batches: files are decoded one window ahead, inputs of one kind and like length go together.

The results come in the order of the inputs, and equal those of one input at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from mmprefix.data.collate import pad_media
from mmprefix.errors import InputError
from mmprefix.inference.inputs import Input, InputSource, assign_to_branches, input_kinds, source_and_span
from mmprefix.model import PrefixLM
from mmprefix.types import Batch

Item = TypeVar("Item")
Result = TypeVar("Result")
WINDOW_BATCHES = 8  # batches whose files are decoded, and sorted by length, together


@dataclass(frozen=True)
class BatchRequest:
    """Inputs, and for each of them its prompt, its context and the target texts to score, if any."""

    inputs: list[Input]
    prompts: list[str]
    contexts: list[str]
    targets: list[list[str]]
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size {self.batch_size}: give a number from 1 on")


def run_batched(model: PrefixLM, request: BatchRequest, compute: Callable[[Batch], list[Result]]) -> list[Result]:
    """Runs ``compute`` (a batch → a result an input) over batches of at most ``batch_size`` inputs.

    The files of ``WINDOW_BATCHES`` batches are decoded while the model computes on those before. An input without
    context gets one where the model has a transcriber. Raises InputError for an input that cannot be read, by name.
    """
    sources = [_sources_of(model, request, number) for number in range(len(request.inputs))]
    contexts = list(request.contexts)
    device = next(model.parameters()).device
    step = request.batch_size * WINDOW_BATCHES
    windows = [range(start, min(start + step, len(sources))) for start in range(0, len(sources), step)]

    def decode(window: range) -> dict[int, dict[str, Tensor]]:
        return {row: _preprocess(model, sources[row]) for row in window}

    results: dict[int, Result] = {}
    for window, tensors in zip(windows, prefetch(decode, windows), strict=True):
        silent = [row for row in window if "audio" in sources[row] and not contexts[row]]
        _transcribe(model, contexts, {row: sources[row]["audio"] for row in silent})
        for rows in _alike(tensors, request.batch_size):
            batch = Batch(
                {name: pad_media([tensors[row][name] for row in rows]) for name in tensors[rows[0]]},
                [request.prompts[row] for row in rows],
                [request.targets[row] for row in rows],
                [contexts[row] for row in rows],
                [str(row) for row in rows],
            )
            with torch.inference_mode():
                results.update(zip(rows, compute(batch.to(device)), strict=True))
    return [results[row] for row in range(len(sources))]


def prefetch(make: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yields ``make(item)`` of each item in order; while one result is in use the next is made, in a thread.

    An error in ``make`` is raised where its result would come; work that was begun beyond it is finished and dropped.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="mmprefix-prefetch") as pool:
        pending = None
        for item in items:
            following = pool.submit(make, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _sources_of(model: PrefixLM, request: BatchRequest, number: int) -> dict[str, InputSource]:
    """The sources of one input by branch name; none where a context stands alone."""
    value = request.inputs[number]
    if not isinstance(value, dict) or value or not model.reads_text:
        return assign_to_branches(value, input_kinds(model))
    if not request.contexts[number]:
        raise InputError(f"input {number + 1}: has neither a file nor a context; give one of them")
    return {}


def _preprocess(model: PrefixLM, sources: Mapping[str, InputSource]) -> dict[str, Tensor]:
    """Sources by branch name → waveforms (S,) and pictures (3 Y X), in the order of the names."""
    names = sorted(sources.keys() & set(model.encoders))
    return {name: model.encoder(name).preprocess(*source_and_span(sources[name])) for name in names}


def _alike(tensors: Mapping[int, Mapping[str, Tensor]], size: int) -> Iterator[list[int]]:
    """Rows with inputs for the same branches, the shortest first, at most ``size`` at a time."""
    order = sorted(tensors, key=lambda row: (list(tensors[row]), [t.shape[-1] for t in tensors[row].values()]))
    for _, group in groupby(order, key=lambda row: list(tensors[row])):
        rows = list(group)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _transcribe(model: PrefixLM, contexts: list[str], sounds: Mapping[int, InputSource], size: int = 8) -> None:
    """Writes the transcripts of ``sounds``, by row, into ``contexts``, where the model has a transcriber."""
    transcriber = model.transcriber
    if transcriber is None or not sounds:
        return
    device = next(model.parameters()).device
    waveforms = {row: transcriber.preprocess(*source_and_span(source)) for row, source in sounds.items()}
    order = sorted(waveforms, key=lambda row: len(waveforms[row]))
    for rows in (order[start : start + size] for start in range(0, len(order), size)):
        transcripts = transcriber(pad_media([waveforms[row] for row in rows]).to(device))
        for row, transcript in zip(rows, transcripts, strict=True):
            contexts[row] = transcript.text
