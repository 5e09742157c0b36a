"""Results in order: of prefetch, computed one ahead in another thread, and of a stream with inputs that are bad."""

from __future__ import annotations

import gc
import io
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmprefix import InputError, Predictor, Waveform
from mmprefix.inference.batches.request import WINDOW_BATCHES
from mmprefix.inference.batches.run import prefetch
from tiny.models import assert_same_candidates, sound_bytes, tone


def test_results_come_in_order() -> None:
    assert list(prefetch(lambda n: n * n, range(7))) == [n * n for n in range(7)]
    assert list(prefetch(lambda n: n, [])) == []


def test_the_next_result_is_computed_before_it_is_asked_for() -> None:
    started = [threading.Event() for _ in range(3)]

    def make(number: int) -> int:
        started[number].set()
        return number

    results = prefetch(make, range(3))
    assert next(results) == 0
    assert started[1].wait(300)  # before next() asks for it
    assert not started[2].is_set()
    assert list(results) == [1, 2]


def test_an_error_is_raised_in_its_turn() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise ValueError("the third")
        return number

    results = prefetch(make, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(results)


def test_closing_early_starts_no_further_work() -> None:
    made: list[int] = []
    results = prefetch(made.append, range(100))
    next(results)
    results.close()  # pyright: ignore
    assert len(made) <= 3


# -------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_bad_input_has_its_error_in_the_place_of_its_texts(
    model: Predictor, files: list[Path], tmp_path: Path, batch_size: int
) -> None:
    (tmp_path / "text.jpg").write_text("a picture of a cat")
    inputs = [files[0], tmp_path / "none.wav", *files[1:4], tmp_path / "text.jpg", files[4], {"sound": files[0]}]
    results = list(model.stream(inputs, batch_size=batch_size))
    errors = {n: str(result) for n, result in enumerate(results) if isinstance(result, InputError)}
    assert list(errors) == [1, 5, 7]
    for message, part in zip(errors.values(), ("none.wav: no such", "text.jpg: not a", "no branch"), strict=True):
        assert part in message
    good = [result for result in results if not isinstance(result, InputError)]
    assert_same_candidates(good, model.candidates(files[:5], num_return=1))


def test_a_stream_takes_no_more_of_a_generator_than_it_needs(model: Predictor, files: list[Path]) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield files[0]

    stream = model.stream(endless(), batch_size=1)
    assert taken == 0
    first = next(stream)
    assert not isinstance(first, InputError)
    assert first[0].text == model(files[0])
    assert taken == 2 * WINDOW_BATCHES  # one window is computed, the next one decoded


def test_an_input_that_the_decoder_refuses_does_not_end_the_others(model: Predictor, files: list[Path]) -> None:
    """A prompt that is longer than the decoder's positions is one input's fault; an option is the fault of all."""
    prompts = ["", "a dog " * 200, ""]
    results = list(model.stream(files[:3], prompt=prompts))
    assert [isinstance(result, InputError) for result in results] == [False, True, False]
    with pytest.raises(InputError, match="has 128 positions"):
        list(model.stream(files[:3], max_new_tokens=500))
    with pytest.raises(InputError, match="batch_size 0"):
        list(model.stream(files[:3], batch_size=0))
    with pytest.raises(InputError, match="num_beams=0"):
        model.stream(files[:3], num_beams=0)
    assert list(model.stream([])) == []


# ------------------------------------------------------------------------------------------ what a bad input leaves


def _png() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((40, 40), 50).save(file, "png")
    return file.getvalue()


BAD: dict[str, Callable[[], Any]] = {
    "cut-png": lambda: _png()[:-500],
    "broken-png": lambda: b"\x89PNG\r\n\x1a\n broken",
    "cut-wav": lambda: sound_bytes(tone(0.5, 300.0))[:-900],
    "broken-wav": lambda: b"RIFF\x10\0\0\0WAVEbroken",
    "broken-ogg": lambda: b"OggS" + bytes(200),
    "text": lambda: b"a picture of a cat",
    "shape": lambda: np.zeros((4, 5, 6, 7)),
    "floats": lambda: Image.new("F", (30, 30)),
}
CALLS: dict[str, Callable[[Predictor, list[Any]], Any]] = {
    "call": lambda model, inputs: model(inputs),
    "several windows": lambda model, inputs: model([inputs[0]] * WINDOW_BATCHES + inputs, batch_size=1),
    "prompt too long": lambda model, inputs: model(inputs[:1], prompt="a dog " * 200),
    "stream": lambda model, inputs: list(model.stream(inputs)),
    "option of a stream": lambda model, inputs: list(model.stream([inputs[0]] * 2, max_new_tokens=500)),
}


@pytest.mark.parametrize(
    ("kind", "bad"),
    [*product(("call", "stream"), BAD), *((kind, "text") for kind in CALLS if kind not in ("call", "stream"))],
)
def test_a_failed_call_keeps_nothing(model: Predictor, kind: str, bad: str) -> None:
    """Inputs are free at once: the collector of cycles counts objects, not the megabytes that hang on them."""
    good, broken = tone(0.3, 300.0), BAD[bad]()
    gc.collect()
    gc.disable()
    references, alive, results = sys.getrefcount(broken), weakref.ref(good), list[Any]()
    try:
        with suppress(InputError):
            results = CALLS[kind](model, [Waveform(good, 16000), broken])
        del good
        assert sys.getrefcount(broken) == references
        assert alive() is None
        assert [isinstance(result, InputError) for result in results] == ([False, True] if kind == "stream" else [])
    finally:
        gc.enable()
