"""Search steps in fixed buffers, recorded as a CUDA graph: hypotheses equal those of steps on a growing cache.

Without a GPU the recorder is simulated: a replay runs the step again and writes its logits where the first went, as a
recording does. With a GPU it is PyTorch's own.
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
from tiny import whisper as tiny_whisper
from tiny.decoders import KINDS, WINDOWED, save_decoder

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
SEARCHES = [
    GenerateOptions(max_new_tokens=12),
    GenerateOptions(max_new_tokens=12, num_beams=4, num_return=2, no_repeat_ngram_size=2),
    GenerateOptions(max_new_tokens=12, num_beams=3, ranking="clipcap"),
    GenerateOptions(max_new_tokens=12, sample=True, temperature=0.8, top_p=0.9, num_return=3, seed=5),
]
WORDS = ["!", "dog", "barks", "a", "rain", "falls", "<eos>", "<unk>"]


class SimulatedGraph:
    """A stand-in for a CUDA graph on a CPU."""

    def __init__(self, buffers: GraphBuffers, decoder: Any) -> None:
        self.buffers, self.decoder = buffers, decoder

    def replay(self) -> None:
        """Run the step with the present content of its buffers."""
        cast(Tensor, self.buffers.logits).copy_(self.buffers._run(self.decoder))


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    if GPU:
        return

    def record(buffers: Any, decoder: Any) -> None:
        buffers.logits, buffers.graph = torch.zeros_like(buffers._run(decoder)), SimulatedGraph(buffers, decoder)

    monkeypatch.setattr(GraphBuffers, "_record", record)
    monkeypatch.setattr(search_module, "can_record", lambda decoder, state, steps: steps >= cuda_graph.MIN_STEPS)


@pytest.fixture(scope="module", params=[*KINDS, "words", "whisper"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ComposedDecoder:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "whisper":
        made: ComposedDecoder = CrossDecoder(tiny_whisper.save_whisper(folder))
    elif request.param == "words":
        made = WordDecoder(save_decoder(folder), WORDS)
    else:
        made = CausalDecoder(save_decoder(folder, request.param))
    return made.to(DEVICE).eval()


def prefilled(decoder: ComposedDecoder, lengths: list[int], seed: int) -> State:
    """The state after random prefixes, and after random frames where the decoder has cross-attention."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    prefix = Prefix(torch.randn(*mask.shape, decoder.width, generator=random).to(DEVICE), mask.to(DEVICE))
    memory = None
    if decoder.memory_dim:
        frame_mask = torch.arange(20) < torch.randint(5, 21, (len(lengths), 1), generator=random)
        frames = torch.randn(len(lengths), 20, decoder.memory_dim, generator=random)
        memory = Features(frames.to(DEVICE), frame_mask.to(DEVICE), frames[:, 0].to(DEVICE))
    with torch.no_grad():
        return decoder.append(decoder.prefill(prefix, memory), ["the"] * len(lengths))


def searched(decoder: ComposedDecoder, state: State, options: GenerateOptions, stops: Tensor) -> list[list[Hypothesis]]:
    with torch.inference_mode():
        return decoder.search_tokens(state, options, stops.to(DEVICE))


def assert_same(results: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    for own, others in zip(results, expected, strict=True):
        assert [ids for ids, _ in own] == [ids for ids, _ in others]
        assert [score for _, score in own] == pytest.approx([score for _, score in others], abs=1e-3)


@pytest.mark.parametrize("kind", [*WINDOWED, "deepseek"])
def test_windows_and_values_of_another_width_than_keys(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path, kind)).to(DEVICE).eval()
    state, stops = prefilled(decoder, [4, 2, 7], 0), torch.tensor([-1])
    recorded = searched(decoder, state, SEARCHES[1], stops)
    monkeypatch.setattr(search_module, "can_record", lambda *_: False)
    assert_same(recorded, searched(decoder, state, SEARCHES[1], stops))


@pytest.mark.parametrize("options", SEARCHES)
def test_hypotheses_equal_those_of_a_growing_cache(
    decoder: ComposedDecoder, options: GenerateOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three searches of one shape, the later ones in the first's buffers; and with finished inputs dropped."""
    forward = decoder.forward_tokens
    count: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        count.append(len(args[2]))
        return forward(*args, **kwargs)

    for seed in range(3):
        state = prefilled(decoder, [4, 2, 5, 3, 5, 1], seed)
        with monkeypatch.context() as plain:
            plain.setattr(search_module, "can_record", lambda *_: False)
            free = searched(decoder, state, replace(options, num_return=1), torch.tensor([5]))
            stops = torch.tensor([free[row][0][0][:place][-1] for row, place in ((0, 1), (2, 2), (4, 4))])
            expected = searched(decoder, state, options, stops)
        for busy in (256, 0):
            count.clear()
            with monkeypatch.context() as patch:
                patch.setattr(cuda_graph, "MIN_BUSY_HYPOTHESES", busy)
                patch.setattr(decoder, "forward_tokens", counted)
                assert_same(searched(decoder, state, options, stops), expected)
            assert not GPU or not busy or len(count) <= 2  # the first step, and the recording of the second


@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
def test_a_recording_serves_the_next_search(decoder: ComposedDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    state, stops = prefilled(decoder, [3, 4], 0), torch.tensor([decoder.lm.config.vocab_size - 1])
    expected = searched(decoder, state, SEARCHES[1], stops)
    monkeypatch.setattr(decoder, "forward_tokens", lambda *_, **__: pytest.fail("a step was run"))
    assert_same(searched(decoder, state, SEARCHES[1], stops), expected)


def test_buffers_are_not_shared_by_searches_at_once(decoder: ComposedDecoder) -> None:
    state, other = prefilled(decoder, [3, 4], 0), prefilled(decoder, [2, 4], 1)
    with (
        cuda_graph.open_graph_tree(decoder, state, 2, 6) as first,
        cuda_graph.open_graph_tree(decoder, other, 2, 6) as second,
    ):
        assert first.buffers is not second.buffers
    with cuda_graph.open_graph_tree(decoder, state, 2, 6) as again:
        assert again.buffers in (first.buffers, second.buffers)


def test_new_weights_are_another_recording(tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path)).to(DEVICE)
    options, stops = SEARCHES[0], torch.tensor([1])
    state = prefilled(decoder, [3, 4], 0)
    before = searched(decoder, state, options, stops)
    for parameter in decoder.parameters():
        parameter.data = parameter.data.flip(0).clone()
    state = prefilled(decoder, [3, 4], 0)
    result = searched(decoder, state, options, stops)
    assert [group[0][0] for group in result] != [group[0][0] for group in before]
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(search_module, "can_record", lambda *_: False)
        assert_same(result, searched(decoder, state, options, stops))


def test_only_the_latest_buffers_are_kept(decoder: ComposedDecoder) -> None:
    for count in range(2, 7):
        searched(decoder, prefilled(decoder, [3] * count, 0), SEARCHES[0], torch.tensor([1]))
    assert len(cuda_graph._kept[decoder.lm]) == cuda_graph.MAX_KEPT_GRAPHS
    assert [len(buffers.mask) for buffers in cuda_graph._kept[decoder.lm]] == [5, 6]


@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
def test_a_model_that_cannot_be_recorded_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path)).to(DEVICE)
    state = prefilled(decoder, [3, 4, 2], 0)
    expected = searched(decoder, state, SEARCHES[1], torch.tensor([1]))
    forward = decoder.forward_tokens

    def synchronizing(*args: Any, **kwargs: Any) -> Tensor:
        hidden = forward(*args, **kwargs)
        assert hidden.sum().item() < float("inf")
        return hidden

    cuda_graph._kept.clear()
    monkeypatch.setattr(decoder, "forward_tokens", synchronizing)
    assert_same(searched(decoder, state, SEARCHES[1], torch.tensor([1])), expected)
    assert decoder.lm in cuda_graph._refused
    assert_same(searched(decoder, state, SEARCHES[1], torch.tensor([1])), expected)
