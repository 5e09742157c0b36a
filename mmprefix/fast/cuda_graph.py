"""CUDA graph of a search step: its kernel launches are recorded once and replayed.

Claim: a step of a small language model is hundreds of short kernels. To launch them one by one takes several times
longer than to run them. A recording reads and writes fixed buffers, whose content alone changes; it is kept for the
next search of the same shape. Hypotheses are those of ``EagerTree``.
Measure: ``benchmarks/generate.py --device cuda``.
Off: ``MMPREFIX_FAST`` without ``cuda_graph``; it is never used on a CPU.

PyTorch's recorder: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mmprefix.kv_cache.cache import set_layer
from mmprefix.kv_cache.state import Layer, Memory, State

if TYPE_CHECKING:
    from mmprefix.kv_cache.protocols import TreeModel

log = logging.getLogger(__name__)

MIN_STEPS = 4  # steps from which a recording pays
MAX_KEPT_GRAPHS = 2  # recordings of a language model, each with its cache
MIN_BUSY_HYPOTHESES = 256  # hypotheses that keep a GPU busy: with fewer, a step takes as long with finished inputs

_kept: WeakKeyDictionary[nn.Module, list[GraphBuffers]] = WeakKeyDictionary()  # latest last; none that is in use
_refused: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@contextmanager
def open_graph_tree(decoder: TreeModel, state: State, width: int, steps: int) -> Iterator[CudaGraphTree]:
    """A tree of at most ``steps`` steps of ``width`` nodes, in buffers that an earlier search left, or new ones."""
    tree = CudaGraphTree(decoder, state, width, steps)
    yield tree
    tree.release()


class CudaGraphTree:
    """A ``TokenTree`` whose cache has its full length from the start, in fixed buffers."""

    def __init__(self, decoder: TreeModel, state: State, width: int, steps: int) -> None:
        self.decoder, self.steps = decoder, steps
        self.buffers = _take_buffers(decoder, state, width, steps)
        self.buffers.load(state)

    def step(self, tokens: Tensor, ancestry: Tensor) -> Tensor:
        """Tokens (B W), one for each hypothesis → logits (B W V), to be read before the next step."""
        return self.buffers.step(self.decoder, tokens, ancestry)

    def should_compact(self, active: int, count: int) -> bool:
        """Whether half of a large batch has finished."""
        return count * self.buffers.width > MIN_BUSY_HYPOTHESES and active <= count / 2

    def select(self, rows: Tensor) -> None:
        """Keep the inputs ``rows``, in smaller buffers."""
        before = self.buffers
        state = before.state().select(rows)
        self.buffers = _take_buffers(self.decoder, state, before.width, self.steps, before.prefix_length)
        self.buffers.load(state, before.done)
        _give_back(self.decoder, before)

    def release(self) -> None:
        """Let the next search have the buffers."""
        _give_back(self.decoder, self.buffers)


class GraphBuffers:
    """Fixed buffers for searches of one shape: all that a step reads and writes, and the recording of a step.

    B inputs, T positions of a state, ``steps`` steps of W nodes; the cache is L pairs (B H T+steps*W K).
    """

    def __init__(self, decoder: TreeModel, state: State, width: int, steps: int, prefix_length: int) -> None:
        self.key = _key(decoder, state, width, steps, prefix_length)
        self.width, self.prefix_length, self.done = width, prefix_length, 0
        mask, room, count = state.mask, width * steps, len(state.mask)
        with torch.inference_mode(False):  # buffers may be written to outside of inference mode later
            self.index = torch.zeros(width, dtype=torch.long, device=mask.device)  # positions of the next nodes
            self.depth = torch.zeros(count, width, dtype=torch.long, device=mask.device)
            self.embeds = torch.zeros_like(decoder.embed(self.depth))
            self.visible = torch.zeros(count, width, room, dtype=torch.bool, device=mask.device)
            self.mask = torch.zeros(count, prefix_length, dtype=torch.bool, device=mask.device)
            self.cache = DynamicCache()
            for keys, values in state.cache:
                shape = (*keys.shape[:2], prefix_length + room, keys.shape[3])
                self.cache.layers.append(_FixedLayer(*(p.new_zeros(shape) for p in (keys, values)), index=self.index))
            self.memory = state.memory and _zeros(state.memory)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None  # of the recorded step
        self.warm = False

    def load(self, state: State, done: int = 0) -> None:
        """Copy ``state``, in which ``done`` steps of a search are included, into the buffers."""
        self.done = done
        self.mask.copy_(state.mask)
        self.visible.zero_()
        for layer, (keys, values) in zip(self.cache.layers, state.cache, strict=True):
            cast(_FixedLayer, layer).load(keys, values)
        if self.memory and state.memory:
            self.memory.mask.copy_(state.memory.mask)
            for own, source in zip(self.memory.layers, state.memory.layers, strict=True):
                own[0].copy_(source[0])
                own[1].copy_(source[1])

    def state(self) -> State:
        """The loaded state with the nodes since."""
        return State(tuple(cast(_FixedLayer, layer).whole for layer in self.cache.layers), self.mask, None, self.memory)

    def step(self, decoder: TreeModel, tokens: Tensor, ancestry: Tensor) -> Tensor:
        """Run the first step in new buffers, record the second, and replay it from then on."""
        start = self.prefix_length + self.done * self.width
        torch.arange(start, start + self.width, out=self.index)
        self.embeds.copy_(decoder.embed(tokens))
        self.depth.fill_(self.done)
        self.visible[:, :, : ancestry.shape[-1]] = ancestry
        self.done += 1
        with torch.cuda.device_of(self.mask):
            if self.warm and self.graph is None and decoder.lm not in _refused:
                self._record(decoder)
            self.warm = True
            if self.graph is None:
                return self._run(decoder)
            self.graph.replay()
            return cast(Tensor, self.logits)

    def _run(self, decoder: TreeModel) -> Tensor:
        state = State((), self.mask, None, self.memory)
        with _uncached_autocast(self.mask.device.type):
            position_ids = decoder.position_ids(state, self.depth)
            return decoder.logits(decoder.forward_tokens(state, self.cache, self.embeds, self.visible, position_ids))

    def _record(self, decoder: TreeModel) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.logits = self._run(decoder)
        except RuntimeError as error:  # a model that asks the GPU for a value, say
            _refused[decoder.lm] = True
            reason = str(error).strip().splitlines()[0]
            log.warning(
                "a step of this language model cannot be recorded as a CUDA graph, it is run singly: %s", reason
            )
        else:
            self.graph = graph


class _FixedLayer(DynamicLayer):
    """Keys and values (B H T K) of the full length, written to at ``index`` (W,) and read as a whole."""

    def __init__(self, keys: Tensor, values: Tensor, index: Tensor) -> None:
        super().__init__()
        self.index = index
        set_layer(self, keys, values)

    @property
    def whole(self) -> Layer:
        """Keys and values of all positions, those included that are not written yet."""
        return cast(Layer, (self.keys, self.values))

    def load(self, keys: Tensor, values: Tensor) -> None:
        """Copy keys and values to the start; the mask hides what follows until it is written."""
        for own, source in zip(self.whole, (keys, values), strict=True):
            own[:, :, : source.shape[2]].copy_(source)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Layer:
        keys, values = self.whole
        keys.index_copy_(2, self.index, key_states.to(keys.dtype))
        values.index_copy_(2, self.index, value_states.to(values.dtype))
        return keys, values


def _take_buffers(
    decoder: TreeModel, state: State, width: int, steps: int, prefix_length: int | None = None
) -> GraphBuffers:
    """Buffers of this shape that an earlier search left, taken from the kept ones while in use, or new ones."""
    length = state.mask.shape[1] if prefix_length is None else prefix_length
    key, kept = _key(decoder, state, width, steps, length), _kept.get(decoder.lm, [])
    for index, buffers in enumerate(kept):
        if buffers.key == key:
            return kept.pop(index)
    return GraphBuffers(decoder, state, width, steps, length)


def _give_back(decoder: TreeModel, buffers: GraphBuffers) -> None:
    kept = _kept.setdefault(decoder.lm, [])
    kept.append(buffers)
    del kept[:-MAX_KEPT_GRAPHS]


def _key(decoder: TreeModel, state: State, width: int, steps: int, prefix_length: int) -> Any:
    """All that a recording depends on but the content of its buffers."""
    kind, memory = state.mask.device.type, state.memory
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    module = cast(nn.Module, decoder)
    weights = [part.data_ptr() for part in (*module.parameters(), *module.buffers())]
    cache = [(tuple(keys.shape[:2]), keys.shape[3], keys.dtype) for keys, _ in state.cache]
    crossed = memory and (tuple(memory.mask.shape), [(keys.shape, keys.dtype) for keys, _ in memory.layers])
    return width, steps, prefix_length, len(state.mask), str(state.mask.device), cache, crossed, autocast, weights


def _zeros(memory: Memory) -> Memory:
    layers = tuple((torch.zeros_like(keys), torch.zeros_like(values)) for keys, values in memory.layers)
    return replace(memory, layers=layers, mask=torch.zeros_like(memory.mask))


@contextmanager
def _uncached_autocast(kind: str) -> Iterator[None]:
    """Autocast as it is, without its cache of cast weights: one made in a recording would be gone outside."""
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False):
            yield
    else:
        yield
