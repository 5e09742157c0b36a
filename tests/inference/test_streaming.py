"""Texts in pieces: together they are the text of a call, and a stream that is left ends its search."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mmprefix
from mmprefix import InputError, Predictor, Waveform
from mmprefix.cli.main import main
from mmprefix.decoders.base import Decoder
from mmprefix.generation import search
from mmprefix.generation.options import GenerateOptions
from mmprefix.types import Prefix
from tiny.models import RATE, tone

SEARCHES: list[dict[str, Any]] = [
    {},
    {"num_beams": 3},
    {"num_beams": 5, "length_penalty": 0.0, "max_new_tokens": 16},
    {"num_beams": 4, "length_penalty": 2.0, "temperature": 1.5},
    {"seed": 5, "temperature": 1.3},
    {"seed": 8, "temperature": 3.0, "max_new_tokens": 40},  # most pieces of a byte are no character
    {"max_new_tokens": 20, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
]


@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_the_pieces_are_the_text_of_a_call(model: Predictor, files: list[Path], options: dict[str, Any]) -> None:
    counts: list[int] = []
    for file in files[:3]:
        pieces = list(model.stream(file, **options))
        assert "".join(pieces) == model(file, **options)
        assert all(pieces)
        counts.append(len(pieces))
    if options.get("num_beams", 1) == 1:
        assert max(counts) > 3


def test_beams_are_streamed_before_the_search_ends(model: Predictor, files: list[Path]) -> None:
    counts = [len(list(model.stream(file, num_beams=2, max_new_tokens=16))) for file in files[:4]]
    assert max(counts) > 1


def test_clipcaps_search_is_streamed(model: Predictor, files: list[Path]) -> None:
    options = GenerateOptions(max_new_tokens=12, num_beams=3, ranking="clipcap")
    own = Predictor(model.model, replace(model.settings, generate=options))
    for file in files[:4]:
        assert "".join(own.stream(file)) == own(file)


def test_one_input_is_what_a_call_takes_for_one(model: Predictor, files: list[Path]) -> None:
    sound = Waveform(tone(0.8, 300.0), RATE)
    one: list[Any] = [
        str(files[0]),
        files[0],
        files[0].read_bytes(),
        {"audio": files[0]},
        sound,
        (tone(0.5, 200.0), RATE),
    ]
    for value in one:
        assert "".join(model.stream(value)) == model(value)
    several: list[Any] = [files[:2], tuple(files[:2]), iter(files[:2]), dict.fromkeys(files[:2]).keys()]
    for value in several:
        results = list(model.stream(value))
        assert [row[0].text for row in results if not isinstance(row, InputError | str)] == model(files[:2])


def test_what_cannot_be_streamed_is_refused_before_the_first_piece(model: Predictor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.wav: no such file"):
        next(iter(model.stream(tmp_path / "none.wav")))
    with pytest.raises(InputError, match="num_return=2: one input is streamed as one text"):
        model.stream(tmp_path / "none.wav", num_return=2)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="beams"):
        model.stream(tmp_path / "none.wav", beams=2)  # pyright: ignore


def test_a_stream_that_is_left_ends_its_search(
    model: Predictor, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread and no cache is left, and the mode of autograd is the caller's between pieces."""
    trees: list[weakref.ref[Any]] = []

    class WatchedTree(search.EagerTree):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            trees.append(weakref.ref(self))

    monkeypatch.setattr(search, "EagerTree", WatchedTree)
    threads = threading.active_count()
    pieces = model.stream(files[0], max_new_tokens=30)
    next(pieces)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    pieces.close()
    del pieces
    gc.collect()
    assert [tree() for tree in trees] == [None]
    assert threading.active_count() == threads


def test_several_threads_stream_at_once(model: Predictor, files: list[Path]) -> None:
    def streamed(file: Path) -> str:
        return "".join(model.stream(file, num_beams=2, max_new_tokens=12))

    expected = [model(file, num_beams=2, max_new_tokens=12) for file in files[:4]]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(streamed, files[:4])) == expected


def test_a_stream_may_go_on_in_another_thread(model: Predictor, files: list[Path]) -> None:
    """A web server asks for each piece in whichever thread is free."""
    pieces: Iterator[str] = model.stream(files[0], max_new_tokens=12)
    text = next(pieces)
    with ThreadPoolExecutor(1) as pool:
        text += pool.submit(lambda: next(pieces)).result()
    assert text + "".join(pieces) == model(files[0], max_new_tokens=12)


def test_the_shell_prints_the_pieces(
    saved: dict[str, Path], files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = mmprefix.load(saved["both"], device="cpu")
    words, options = ["caption", str(saved["both"]), str(files[0])], ["--device", "cpu", "--stream"]
    assert main([*words, *options, "--num-beams", "2"]) == 0
    assert capsys.readouterr().out == model(files[0], num_beams=2) + "\n"
    refused = {("--json",): "leave out --json", ("--num-return", "2"): "--num-return 2", (str(files[1]),): "not of 2"}
    for more, message in refused.items():
        assert main([*words, *more, *options]) == 2
        assert message in capsys.readouterr().err


def test_a_decoder_without_a_search_of_its_own_streams_its_text_whole(model: Predictor) -> None:
    decoder = model.model.decoder
    state = decoder.append(decoder.prefill(Prefix.empty(1, decoder.width)), ["a dog"])
    options = GenerateOptions(max_new_tokens=6)
    pieces = list(Decoder.stream_from(decoder, state, options))
    assert pieces == [decoder.generate_from(state, options)[0][0].text]
