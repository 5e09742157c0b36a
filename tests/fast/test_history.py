"""Results depend on input and model alone: equal bits from a new model, a used one, a copy, and another process."""

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
from mmprefix.inference.loading import load
from mmprefix.inference.predictor import Predictor
from mmprefix.kv_cache.state import State
from mmprefix.saved_model import ModelSettings
from mmprefix.slu.schema import read_schema
from mmprefix.types import Features, Prefix
from tiny import models as tiny_models
from tiny import slu_system as tiny_slu_system
from tiny import whisper as tiny_whisper
from tiny.decoders import KINDS, save_decoder

TESTS = Path(__file__).resolve().parents[1]
CALLS = (1, 30)  # calls of the decoder after which results are compared with the first
MANY = ("gpt2", "whisper", "captions")  # kinds that are called two hundred times: of each way to keep a cache one
WORDS = ["!", "dog", "barks", "a", "rain", "falls", "<eos>", "<unk>"]
TEXTS = [["a dog barks", "rain falls"], ["a dog"], ["rain"]]
GREEDY = GenerateOptions(max_new_tokens=5)
BEAMS = GenerateOptions(max_new_tokens=4, num_beams=3, num_return=2)
LENGTHS = [4, 2, 5]


def decoder(kind: str, folder: Path) -> ComposedDecoder:
    """Tiny frozen decoder: a causal language model, one with LoRA, a word-level one, Whisper or BART."""
    path = folder / kind
    if kind in ("whisper", "bart"):
        make = getattr(tiny_whisper, f"save_{kind}")
        return CrossDecoder(str(path) if path.exists() else make(path)).eval()
    model = str(path) if path.exists() else save_decoder(path, kind if kind in KINDS else "gpt2")
    torch.manual_seed(0)
    built = WordDecoder(model, WORDS) if kind == "words" else CausalDecoder(model, lora_rank=2 * (kind == "lora"))
    return built.eval()


def prefilled(decoder: ComposedDecoder) -> State:
    """State after a random prefix, with random memory if the decoder has cross-attention to frames."""
    random = torch.Generator().manual_seed(3)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    prefix, memory = Prefix(torch.randn(*mask.shape, decoder.width, generator=random), mask), None
    if decoder.memory_dim:
        frames = torch.randn(len(LENGTHS), 9, decoder.memory_dim, generator=random)
        memory = Features(frames, torch.arange(9) < torch.tensor([[9], [4], [7]]), frames[:, 0])
    elif isinstance(decoder, CrossDecoder):
        prefix = Prefix(prefix.embeds[:, :0], mask[:, :0])
    return decoder.prefill(prefix, memory)


@torch.no_grad()
def decoder_results(decoder: ComposedDecoder) -> list[Any]:
    """Log-probabilities of texts and choices, logits, and the candidates of two searches."""
    state, prompts = prefilled(decoder), ["a", "a", "a"]
    results: list[Any] = [decoder.score(state, prompts, TEXTS)]
    results.append(decoder.score_choices(decoder.append_prompts(state, prompts), prompts, ["dog", "rain falls"]))
    for rows in (slice(None), slice(0, 1)):  # several inputs, and one alone: different numbers of rows
        selected = state.select(torch.arange(len(LENGTHS))[rows])
        results.append(decoder.logits(decoder.append(selected, prompts[rows]).last_hidden))  # pyright: ignore[reportArgumentType]
        results += [decoder.generate(selected, prompts[rows], options) for options in (GREEDY, BEAMS)]
    return results


def run_searches(decoder: ComposedDecoder, calls: int) -> None:
    """Run ``calls`` searches of one input, with one beam and five in turn."""
    state = prefilled(decoder).select(torch.tensor([0]))
    with torch.no_grad():
        prompted = decoder.append(state, ["a"])
        for call in range(calls):
            decoder.generate_from(prompted, GenerateOptions(max_new_tokens=2, num_beams=(1, 5)[call % 2]))


def bits(value: Any) -> Any:
    """Exact representation of nested results, which can be compared and sent from another process."""
    if isinstance(value, Tensor):
        return hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): bits(value) for key, value in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return bits(vars(value)) if hasattr(value, "__dict__") else value


def captioning_model(folder: Path) -> Predictor:
    """Saved model that captions sounds and pictures."""
    if not (folder / "model").exists():
        parts = tiny_models.frozen_parts(folder)
        tiny_models.save_model(folder / "model", parts, "image", "audio", options=BEAMS)
        tiny_models.media_files(folder / "media")
    return load(folder / "model", device="cpu")


def caption_results(folder: Path) -> Callable[[Predictor], Any]:
    """Call of a model: captions of one file and of several, and the score of a text."""
    files = [str(folder / "media" / name) for name in ("sound0.wav", "picture1.png", "sound3.wav")]
    return lambda model: [
        model.candidates(files[:1]),
        model.candidates(files),
        model.score(files[1:2], ["a dog barks", "rain falls"]),
    ]


def understanding_model(folder: Path, kind: str) -> Predictor:
    """Whisper that answers questions, or a GPT-2 that answers questions about a transcript of Whisper."""
    orders = tiny_slu_system.SluSystem(folder) if folder.exists() else tiny_slu_system.build(folder)
    model = orders.whisper_model() if kind == "hears" else orders.text_model(transcribes=True)
    return Predictor(model, ModelSettings(replace(BEAMS, num_return=1)))


def understanding_results(folder: Path) -> Callable[[Predictor], Any]:
    """Call of a model: intents, slots and their scores for one sound and for two."""
    orders = tiny_slu_system.SluSystem(folder)
    schema = read_schema(orders.path("home.yaml"))
    return lambda model: [model.understand(orders.sounds[:n], schema=schema) for n in (1, 2)]


PLAIN = (*KINDS, "lora", "words", "whisper", "bart")
WHOLE = ("captions", "hears", "reads")


def model_and_call(kind: str, folder: Path) -> tuple[Any, Callable[[Any], Any]]:
    """New model of a kind, and the call whose results are compared."""
    if kind in PLAIN:
        return decoder(kind, folder), decoder_results
    if kind == "captions":
        return captioning_model(folder / kind), caption_results(folder / kind)
    return understanding_model(folder / kind, kind), understanding_results(folder / kind)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("history")
    for kind in (*PLAIN, *WHOLE):
        model_and_call(kind, root)
    return root


@pytest.fixture(scope="module")
def other_process(folder: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """Results of another process, in reverse order of kinds; it runs while this one does."""
    words = [sys.executable, __file__, str(folder), *reversed((*PLAIN, *WHOLE))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        yield cache(lambda: json.loads(process.communicate()[0].splitlines()[-1]))


@pytest.mark.parametrize("kind", [*PLAIN, *WHOLE])
def test_results_do_not_depend_on_earlier_calls(
    kind: str, folder: Path, other_process: Callable[[], dict[str, Any]]
) -> None:
    model, call = model_and_call(kind, folder)
    first, done = bits(call(model)), 0
    for calls in (*CALLS, 200) if kind in MANY else CALLS:
        run_searches(model if kind in PLAIN else model.model.decoder, calls - done)
        assert bits(call(model)) == first, f"after {calls} calls"
        done = calls
    for copied in (deepcopy(model), pickle.loads(pickle.dumps(model)), model_and_call(kind, folder)[0]):
        assert bits(call(copied)) == first
    assert other_process()[kind] == first


if __name__ == "__main__":
    root, *kinds = sys.argv[1:]
    models = {kind: model_and_call(kind, Path(root)) for kind in kinds}
    sys.stdout.write(json.dumps({kind: bits(call(model)) for kind, (model, call) in models.items()}) + "\n")
