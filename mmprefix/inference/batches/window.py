"""Part of a request whose files are read together: tensors and transcripts of its inputs, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from mmprefix.data.collate import collate_inputs, pad_media
from mmprefix.errors import InputError, without_frames
from mmprefix.inference.batches.request import BatchRequest
from mmprefix.inference.inputs import (
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

Row = dict[str, Tensor | FeatureRow]
"""Inputs of a row, read or encoded before, by branch name."""


@dataclass(frozen=True)
class Window:
    """Decoded request: by row its tensors by branch name, the sound to transcribe, or why it could not be read."""

    request: BatchRequest
    contexts: list[str]
    tensors: dict[int, Row] = field(default_factory=dict[int, Row])
    sounds: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    errors: dict[int, InputError] = field(default_factory=dict[int, InputError])


def decode(model: PrefixLM, request: BatchRequest, strict: bool) -> Window:
    """Tensors of every input of ``request``; without ``strict`` the errors of those that cannot be read."""
    window = Window(request, list(request.contexts))
    for row, value in enumerate(request.inputs):
        try:
            sources = sources_of(model, request, row)
            if model.transcriber is not None and "audio" in sources and not window.contexts[row]:
                window.sounds[row] = model.transcriber.preprocess(*source_and_span(sources["audio"]))
            ready: Mapping[str, FeatureRow] = request.features[row] if request.features else {}
            beside = {} if request.neighbours is None else request.neighbours.preprocess(sources)
            window.tensors[row] = dict(sorted({**ready, **_preprocess(model, sources), **beside}.items()))
        except Exception as error:
            if strict:  # no name is bound to what is raised: in this frame it would be a cycle, and the inputs stay
                raise (with_url(error, value) if isinstance(error, InputError) else error) from error.__cause__
            fault = with_url(error, value) if isinstance(error, InputError) else _unexpected(request, row, error)
            window.errors[row] = without_frames(fault)
    return window


def batch_of(model: PrefixLM, window: Window, rows: list[int]) -> Batch:
    """The ``rows`` of ``window`` on the model's device."""
    request, tensors = window.request, window.tensors
    batch = Batch(
        {name: collate_inputs([tensors[row][name] for row in rows]) for name in tensors[rows[0]]},
        [request.prompts[row] for row in rows],
        [request.targets[row] for row in rows],
        [window.contexts[row] for row in rows],
        [str(row) for row in rows],
    ).to(next(model.parameters()).device)
    batch = batch if request.neighbours is None else request.neighbours.compare(batch)
    contexts = zip(rows, batch.contexts, strict=True)
    return replace(batch, contexts=[model.wording.with_history(request.history(row), text) for row, text in contexts])


def sources_of(model: PrefixLM, request: BatchRequest, number: int) -> dict[str, InputSource]:
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
    if not request.contexts[number] and not request.history(number):
        raise InputError(f"input {request.first + number + 1}: has neither a file nor a context; give one of them")
    return {}


def _unexpected(request: BatchRequest, row: int, error: Exception) -> InputError:
    """A fault of a reader that nobody foresaw: one input's, not the end of all others."""
    value = request.inputs[row]
    name = value if isinstance(value, str | Path) else f"input {request.first + row + 1}"
    return InputError(f"{name}: cannot be read ({type(error).__name__}: {error})")


def _preprocess(model: PrefixLM, sources: Mapping[str, InputSource]) -> dict[str, Tensor]:
    """Sources by branch name → waveforms (S,) and pictures (3 Y X)."""
    names = sorted(sources.keys() & set(model.encoders))
    return {name: model.encoder(name).preprocess(*source_and_span(sources[name])) for name in names}


def transcribe(model: PrefixLM, window: Window, size: int = 8) -> None:
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
