"""Steps on a stage that stays in its place: the same lines as steps on a cache that grows.

Where there is no GPU the recorder is played: to replay is to run the step again and to write its logits where the
first went, which is what a recording does. Where there is one, it is PyTorch's own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.decoders.word_level import WordDecoder
from mmprefix.fast import cuda_graph
from mmprefix.fast.cuda_graph import GraphBuffers
from mmprefix.generation import search as search_module
from mmprefix.generation.options import GenerateOptions
from mmprefix.generation.strategies import Hypothesis
from mmprefix.kv_cache.state import State
from mmprefix.types import Features, Prefix
from tiny import whisper as tiny_speech
from tiny.decoders import KINDS, save_decoder

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
SEARCHES = [
    GenerateOptions(max_new_tokens=12),
    GenerateOptions(max_new_tokens=12, num_beams=4, num_return=2, no_repeat_ngram_size=2),
    GenerateOptions(max_new_tokens=12, num_beams=3, ranking="clipcap"),
    GenerateOptions(max_new_tokens=12, sample=True, temperature=0.8, top_p=0.9, num_return=3, seed=5),
]
WORDS = ["!", "dog", "barks", "a", "rain", "falls", "<eos>", "<unk>"]


class Played:
    """In the place of a CUDA graph."""

    def __init__(self, stage: GraphBuffers, decoder: Any) -> None:
        self.buffers, self.decoder = stage, decoder

    def replay(self) -> None:
        """Runs the step with what is in its place now."""
        cast(Tensor, self.buffers.logits).copy_(self.buffers._run(self.decoder))


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    if GPU:
        return

    def record(stage: Any, decoder: Any) -> None:
        stage.logits, stage.graph = torch.zeros_like(stage._run(decoder)), Played(stage, decoder)

    monkeypatch.setattr(GraphBuffers, "_record", record)
    monkeypatch.setattr(search_module, "can_record", lambda decoder, state, steps: steps >= cuda_graph.MIN_STEPS)


@pytest.fixture(scope="module", params=[*KINDS, "words", "whisper"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ComposedDecoder:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "whisper":
        made: ComposedDecoder = CrossDecoder(tiny_speech.whisper(folder))
    elif request.param == "words":
        made = WordDecoder(save_decoder(folder), WORDS)
    else:
        made = CausalDecoder(save_decoder(folder, request.param))
    return made.to(DEVICE).eval()


def read(decoder: ComposedDecoder, lengths: list[int], seed: int) -> State:
    """What the decoder has read of random prefixes, and, where it looks at some, of random frames."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    prefix = Prefix(torch.randn(*mask.shape, decoder.width, generator=random).to(DEVICE), mask.to(DEVICE))
    memory = None
    if decoder.memory_dim:
        seen = torch.arange(20) < torch.randint(5, 21, (len(lengths), 1), generator=random)
        frames = torch.randn(len(lengths), 20, decoder.memory_dim, generator=random)
        memory = Features(frames.to(DEVICE), seen.to(DEVICE), frames[:, 0].to(DEVICE))
    with torch.no_grad():
        return decoder.append(decoder.prefill(prefix, memory), ["the"] * len(lengths))


def searched(decoder: ComposedDecoder, state: State, options: GenerateOptions, stops: Tensor) -> list[list[Hypothesis]]:
    with torch.inference_mode():
        return decoder.search_tokens(state, options, stops.to(DEVICE))


def same(found: list[list[Hypothesis]], wanted: list[list[Hypothesis]]) -> None:
    for lines, others in zip(found, wanted, strict=True):
        assert [ids for ids, _ in lines] == [ids for ids, _ in others]
        assert [score for _, score in lines] == pytest.approx([score for _, score in others], abs=1e-3)


@pytest.mark.parametrize("options", SEARCHES)
def test_the_same_lines(decoder: ComposedDecoder, options: GenerateOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three searches of one shape, the later ones on the first's stage; and with inputs that leave."""
    runs = decoder.forward_tokens
    count: list[int] = []

    def counted(*args: Any) -> Tensor:
        count.append(len(args[2]))
        return runs(*args)

    for seed in range(3):
        state = read(decoder, [4, 2, 5, 3, 5, 1], seed)
        with monkeypatch.context() as plain:
            plain.setattr(search_module, "can_record", lambda *_: False)
            free = searched(decoder, state, replace(options, num_return=1), torch.tensor([5]))
            stops = torch.tensor([free[row][0][0][:place][-1] for row, place in ((0, 1), (2, 2), (4, 4))])
            wanted = searched(decoder, state, options, stops)
        for busy in (256, 0):
            count.clear()
            with monkeypatch.context() as here:
                here.setattr(cuda_graph, "MIN_BUSY_HYPOTHESES", busy)
                here.setattr(decoder, "forward_tokens", counted)
                same(searched(decoder, state, options, stops), wanted)
            assert not GPU or not busy or len(count) <= 2  # the first step, and the recording of the second


@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
def test_a_recording_serves_the_next_search(decoder: ComposedDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    state, stops = read(decoder, [3, 4], 0), torch.tensor([decoder.lm.config.vocab_size - 1])
    wanted = searched(decoder, state, SEARCHES[1], stops)
    monkeypatch.setattr(decoder, "forward_tokens", lambda *_: pytest.fail("a step was run"))
    same(searched(decoder, state, SEARCHES[1], stops), wanted)


def test_a_stage_is_not_shared_by_searches_at_once(decoder: ComposedDecoder) -> None:
    state, other = read(decoder, [3, 4], 0), read(decoder, [2, 4], 1)
    with (
        cuda_graph.open_graph_tree(decoder, state, 2, 6) as one,
        cuda_graph.open_graph_tree(decoder, other, 2, 6) as two,
    ):
        assert one.buffers is not two.buffers
    with cuda_graph.open_graph_tree(decoder, state, 2, 6) as again:
        assert again.buffers in (one.buffers, two.buffers)


def test_new_weights_are_another_recording(tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path)).to(DEVICE)
    options, stops = SEARCHES[0], torch.tensor([1])
    state = read(decoder, [3, 4], 0)
    before = searched(decoder, state, options, stops)
    for parameter in decoder.parameters():
        parameter.data = parameter.data.flip(0).clone()
    state = read(decoder, [3, 4], 0)
    found = searched(decoder, state, options, stops)
    assert [line[0][0] for line in found] != [line[0][0] for line in before]
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(search_module, "can_record", lambda *_: False)
        same(found, searched(decoder, state, options, stops))


def test_not_more_than_a_few_are_kept(decoder: ComposedDecoder) -> None:
    for count in range(2, 7):
        searched(decoder, read(decoder, [3] * count, 0), SEARCHES[0], torch.tensor([1]))
    assert len(cuda_graph._kept[decoder.lm]) == cuda_graph.MAX_KEPT_GRAPHS
    assert [len(stage.mask) for stage in cuda_graph._kept[decoder.lm]] == [5, 6]


@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
def test_a_model_that_cannot_be_recorded_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path)).to(DEVICE)
    state = read(decoder, [3, 4, 2], 0)
    wanted = searched(decoder, state, SEARCHES[1], torch.tensor([1]))
    run = decoder.forward_tokens

    def asking(*args: Any) -> Tensor:
        found = run(*args)
        assert found.sum().item() < float("inf")
        return found

    cuda_graph._kept.clear()
    monkeypatch.setattr(decoder, "forward_tokens", asking)
    same(searched(decoder, state, SEARCHES[1], torch.tensor([1])), wanted)
    assert decoder.lm in cuda_graph._refused
    same(searched(decoder, state, SEARCHES[1], torch.tensor([1])), wanted)
