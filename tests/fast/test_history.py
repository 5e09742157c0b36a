"""Results depend on the input and the model alone: bits of a fresh model, a used one, a copy, and another process."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.decoders.word_level import WordDecoder
from mmprefix.generation.options import GenerateOptions
from mmprefix.inference.predictor import Predictor, load
from mmprefix.kv_cache.state import State
from mmprefix.saved_model import ModelSettings
from mmprefix.slu.schema import read_schema
from mmprefix.types import Features, Prefix
from tiny import models as tiny_models
from tiny import slu_system as tiny_slu_system
from tiny import whisper as tiny_whisper
from tiny.decoders import KINDS, save_decoder

TESTS = Path(__file__).resolve().parents[1]
CALLS = (1, 30, 200)  # of the decoder, after which a result is compared with the first
WORDS = ["!", "dog", "barks", "a", "rain", "falls", "<eos>", "<unk>"]
TEXTS = [["a dog barks", "rain falls"], ["a dog"], ["rain"]]
GREEDY = GenerateOptions(max_new_tokens=5)
BEAMS = GenerateOptions(max_new_tokens=4, num_beams=3, num_return=2)
LENGTHS = [4, 2, 5]


def decoder(kind: str, folder: Path) -> ComposedDecoder:
    """A tiny frozen decoder; LoRA, words and Whisper beside the usual kinds of language model."""
    place = folder / kind
    if kind in ("whisper", "bart"):
        make = getattr(tiny_whisper, f"save_{kind}")
        return CrossDecoder(str(place) if place.exists() else make(place)).eval()
    model = str(place) if place.exists() else save_decoder(place, kind if kind in KINDS else "gpt2")
    torch.manual_seed(0)
    made = WordDecoder(model, WORDS) if kind == "words" else CausalDecoder(model, lora_rank=2 * (kind == "lora"))
    return made.eval()


def begun(made: ComposedDecoder) -> State:
    """The state after a prefix, and whatever else the decoder looks at."""
    random = torch.Generator().manual_seed(3)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    prefix, memory = Prefix(torch.randn(*mask.shape, made.width, generator=random), mask), None
    if made.memory_dim:
        frames = torch.randn(len(LENGTHS), 9, made.memory_dim, generator=random)
        memory = Features(frames, torch.arange(9) < torch.tensor([[9], [4], [7]]), frames[:, 0])
    elif isinstance(made, CrossDecoder):
        prefix = Prefix(prefix.embeds[:, :0], mask[:, :0])
    return made.prefill(prefix, memory)


@torch.no_grad()
def written(made: ComposedDecoder) -> list[Any]:
    """Log-probabilities of given texts and choices, logits, and what two searches write."""
    state, prompts = begun(made), ["a", "a", "a"]
    found: list[Any] = [made.score(state, prompts, TEXTS)]
    found.append(made.score_choices(made.append_prompts(state, prompts), prompts, ["dog", "rain falls"]))
    for rows in (slice(None), slice(0, 1)):  # several inputs, and one alone: other numbers of rows
        some = state.select(torch.arange(len(LENGTHS))[rows])
        found.append(made.logits(made.append(some, prompts[rows]).last_hidden))  # pyright: ignore[reportArgumentType]
        found += [made.generate(some, prompts[rows], options) for options in (GREEDY, BEAMS)]
    return found


def worked(made: ComposedDecoder, calls: int) -> None:
    """Calls of a decoder as a search makes them, with one row and with five."""
    state = begun(made).select(torch.tensor([0]))
    with torch.no_grad():
        closed = made.append(state, ["a"])
        for call in range(calls):
            made.generate_from(closed, GenerateOptions(max_new_tokens=2, num_beams=(1, 5)[call % 2]))


def bits(found: Any) -> Any:
    """Numbers as they are, to the last bit, in a form that can be compared and sent to another process."""
    if isinstance(found, Tensor):
        return hashlib.sha256(found.detach().contiguous().numpy().tobytes()).hexdigest()
    if isinstance(found, float):
        return found.hex()
    if isinstance(found, dict):
        return {str(key): bits(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [bits(one) for one in found]
    return bits(vars(found)) if hasattr(found, "__dict__") else found


def captioner(folder: Path) -> Predictor:
    """A saved model that captions sounds and pictures."""
    if not (folder / "model").exists():
        parts = tiny_models.frozen_parts(folder)
        tiny_models.save_model(folder / "model", parts, "image", "audio", options=BEAMS)
        tiny_models.media_files(folder / "media")
    return load(folder / "model", device="cpu")


def captions(folder: Path) -> Callable[[Predictor], Any]:
    """Captions one at a time and several, and the score of a text."""
    files = [str(folder / "media" / name) for name in ("sound0.wav", "picture1.png", "sound3.wav")]
    return lambda model: [
        model.candidates(files[:1]),
        model.candidates(files),
        model.score(files[1:2], ["a dog barks", "rain falls"]),
    ]


def understander(folder: Path, kind: str) -> Predictor:
    """A Whisper that is asked, or a GPT-2 that is asked about what a Whisper has written down."""
    orders = tiny_slu_system.SluSystem(folder) if folder.exists() else tiny_slu_system.build(folder)
    model = orders.whisper_model() if kind == "hears" else orders.text_model(transcribes=True)
    return Predictor(model, ModelSettings(replace(BEAMS, num_return=1)))


def understood(folder: Path) -> Callable[[Predictor], Any]:
    """Intents, slots and their scores for one sound and for two."""
    orders = tiny_slu_system.SluSystem(folder)
    schema = read_schema(orders.path("home.yaml"))
    return lambda model: [model.understand(orders.sounds[:n], schema=schema) for n in (1, 2)]


PLAIN = (*KINDS, "lora", "words", "whisper", "bart")
WHOLE = ("captions", "hears", "reads")


def made(kind: str, folder: Path) -> tuple[Any, Callable[[Any], Any]]:
    """A fresh model of a kind, and what is asked of it."""
    if kind in PLAIN:
        return decoder(kind, folder), written
    if kind == "captions":
        return captioner(folder / kind), captions(folder / kind)
    return understander(folder / kind, kind), understood(folder / kind)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("history")
    for kind in (*PLAIN, *WHOLE):
        made(kind, place)
    return place


@pytest.fixture(scope="module")
def elsewhere(folder: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """What another process finds, in the opposite order; it is started before it is waited for."""
    words = [sys.executable, __file__, str(folder), *reversed((*PLAIN, *WHOLE))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        yield cache(lambda: json.loads(process.communicate()[0].splitlines()[-1]))


@pytest.mark.parametrize("kind", [*PLAIN, *WHOLE])
def test_a_result_has_no_history(kind: str, folder: Path, elsewhere: Callable[[], dict[str, Any]]) -> None:
    model, ask = made(kind, folder)
    first, done = bits(ask(model)), 0
    for calls in CALLS:
        worked(model if kind in PLAIN else model.model.decoder, calls - done)
        assert bits(ask(model)) == first, f"after {calls} calls"
        done = calls
    for again in (deepcopy(model), pickle.loads(pickle.dumps(model)), made(kind, folder)[0]):
        assert bits(ask(again)) == first
    assert elsewhere()[kind] == first


if __name__ == "__main__":
    place, *kinds = sys.argv[1:]
    ready = {kind: made(kind, Path(place)) for kind in kinds}
    sys.stdout.write(json.dumps({kind: bits(ask(model)) for kind, (model, ask) in ready.items()}) + "\n")
