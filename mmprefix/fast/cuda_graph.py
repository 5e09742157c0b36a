"""CUDA graph of a search step: its kernel launches are recorded once and replayed.

Claim: a step of a small language model is hundreds of short kernels. To launch them one by one takes several times
longer than to run them. A recording reads and writes fixed buffers; only their content changes. It is kept for the
next search of the same shape. Hypotheses are those of ``EagerTree``.
Measure: ``benchmarks/generate.py --device cuda``.
Off: ``MMPREFIX_FAST`` without ``cuda_graph``; it is never used on a CPU.

PyTorch's recorder: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
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

MIN_STEPS = 4  # a shorter search is not recorded
MAX_KEPT_GRAPHS = 2  # recordings kept for a language model, each with its cache
MIN_BUSY_HYPOTHESES = 256  # fewer do not keep a GPU busy: dropping finished inputs would save no time

_kept: WeakKeyDictionary[nn.Module, list[GraphBuffers]] = WeakKeyDictionary()  # latest last; buffers in use are out
_refused: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # models that cannot be recorded


@contextmanager
def open_graph_tree(decoder: TreeModel, state: State, width: int, steps: int) -> Iterator[CudaGraphTree]:
    """Token tree of at most ``steps`` steps of ``width`` nodes, in the buffers of an earlier search or in new ones."""
    tree = CudaGraphTree(decoder, state, width, steps)
    yield tree
    tree.release()


class CudaGraphTree:
    """``TokenTree`` whose cache has its full length from the start, in fixed buffers."""

    def __init__(self, decoder: TreeModel, state: State, width: int, steps: int) -> None:
        self.decoder = decoder
        self.buffers = _take_buffers(decoder, state, SearchShape(state.mask.shape[1], width, steps))
        self.buffers.load(state)

    def step(self, tokens: Tensor, ancestry: Tensor) -> Tensor:
        """Add a node for each hypothesis, ``tokens`` (B W) → logits (B W V), valid until the next step."""
        return self.buffers.step(self.decoder, tokens, ancestry)

    def should_compact(self, active: int, count: int) -> bool:
        """True once half of a large batch has finished."""
        return count * self.buffers.shape.width > MIN_BUSY_HYPOTHESES and active <= count / 2

    def select(self, rows: Tensor) -> None:
        """Keep the inputs ``rows``, in smaller buffers."""
        before = self.buffers
        state = before.state().select(rows)
        self.buffers = _take_buffers(self.decoder, state, before.shape)
        self.buffers.load(state, before.done)
        _give_back(self.decoder, before)

    def release(self) -> None:
        """Leave the buffers to the next search."""
        _give_back(self.decoder, self.buffers)


@dataclass(frozen=True)
class SearchShape:
    """Positions T of the state that a search starts from, W nodes a step, and the most steps."""

    prefix_length: int
    width: int
    steps: int

    @property
    def nodes(self) -> int:
        """The nodes of all steps."""
        return self.width * self.steps


class GraphBuffers:
    """Fixed buffers for searches of one shape: all that a step reads and writes, and the recording of a step.

    B inputs, T positions of a state, N nodes of all steps; the cache is L pairs (B H T+N K).
    """

    def __init__(self, decoder: TreeModel, state: State, shape: SearchShape) -> None:
        self.key, self.shape, self.done = _key(decoder, state, shape), shape, 0
        mask, count, width = state.mask, len(state.mask), shape.width
        with torch.inference_mode(False):  # buffers may be written to outside of inference mode later
            self.index = torch.zeros(width, dtype=torch.long, device=mask.device)  # positions of the next nodes
            self.depth = torch.zeros(count, width, dtype=torch.long, device=mask.device)
            self.embeds = torch.zeros_like(decoder.embed(self.depth))
            self.visible = torch.zeros(count, width, shape.nodes, dtype=torch.bool, device=mask.device)
            self.mask = torch.zeros(count, shape.prefix_length, dtype=torch.bool, device=mask.device)
            self.layers: list[_FixedLayer] = []
            length = shape.prefix_length + shape.nodes
            for layer in state.cache:
                keys, values = (part.new_zeros(*part.shape[:2], length, part.shape[3]) for part in layer)
                self.layers.append(_FixedLayer(keys, values, self.index))
            self.cache = DynamicCache()
            self.cache.layers.extend(self.layers)
            self.memory = state.memory and _zeros(state.memory)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None  # of the recorded step
        self.warm = False

    def load(self, state: State, done: int = 0) -> None:
        """Copy ``state``, which includes ``done`` steps of a search, into the buffers."""
        self.done = done
        self.mask.copy_(state.mask)
        self.visible.zero_()
        for layer, (keys, values) in zip(self.layers, state.cache, strict=True):
            layer.load(keys, values)
        if self.memory and state.memory:
            self.memory.mask.copy_(state.memory.mask)
            for own, source in zip(self.memory.layers, state.memory.layers, strict=True):
                own[0].copy_(source[0])
                own[1].copy_(source[1])

    def state(self) -> State:
        """The loaded state and the nodes added since."""
        return State(tuple(layer.whole for layer in self.layers), self.mask, None, self.memory)

    def step(self, decoder: TreeModel, tokens: Tensor, ancestry: Tensor) -> Tensor:
        """Logits (B W V); the first step in new buffers is run, the second recorded, later ones are replayed."""
        start = self.shape.prefix_length + self.done * self.shape.width
        torch.arange(start, start + self.shape.width, out=self.index)
        self.embeds.copy_(decoder.embed(tokens))
        self.depth.fill_(self.done)
        self.visible[:, :, : ancestry.shape[-1]] = ancestry
        self.done += 1
        with torch.cuda.device_of(self.mask):
            if self.warm and self.graph is None and decoder.lm not in _refused:
                self._record(decoder)
            self.warm = True
            if self.graph is None or self.logits is None:
                return self._run(decoder)
            self.graph.replay()
            return self.logits

    def _run(self, decoder: TreeModel) -> Tensor:
        state = State((), self.mask, None, self.memory)
        with _uncached_autocast(self.mask.device.type):
            position_ids = decoder.position_ids(state, self.depth)
            hidden = decoder.forward_tokens(
                state, self.cache, self.embeds, visible=self.visible, position_ids=position_ids
            )
            return decoder.logits(hidden)

    def _record(self, decoder: TreeModel) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.logits = self._run(decoder)
        except RuntimeError as error:  # for example a model that copies a value from the GPU
            _refused[decoder.lm] = True
            reason = str(error).strip().splitlines()[0]
            log.warning(
                "a step of this language model cannot be recorded as a CUDA graph and runs without one: %s", reason
            )
        else:
            self.graph = graph


class _FixedLayer(DynamicLayer):
    """Keys and values (B H T K) of the full length, written at positions ``index`` (W,) and read as a whole."""

    def __init__(self, keys: Tensor, values: Tensor, index: Tensor) -> None:
        super().__init__()
        self.index = index
        self.whole: Layer = keys, values  # all positions, including those not written yet
        set_layer(self, keys, values)

    def load(self, keys: Tensor, values: Tensor) -> None:
        """Copy keys and values to the start; the mask hides later positions until they are written."""
        for own, source in zip(self.whole, (keys, values), strict=True):
            own[:, :, : source.shape[2]].copy_(source)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Layer:
        keys, values = self.whole
        keys.index_copy_(2, self.index, key_states.to(keys.dtype))
        values.index_copy_(2, self.index, value_states.to(values.dtype))
        return keys, values


def _take_buffers(decoder: TreeModel, state: State, shape: SearchShape) -> GraphBuffers:
    """Buffers of this shape that an earlier search left, taken from the kept ones while in use, or new ones."""
    key, kept = _key(decoder, state, shape), _kept.get(decoder.lm, [])
    for index, buffers in enumerate(kept):
        if buffers.key == key:
            return kept.pop(index)
    return GraphBuffers(decoder, state, shape)


def _give_back(decoder: TreeModel, buffers: GraphBuffers) -> None:
    kept = _kept.setdefault(decoder.lm, [])
    kept.append(buffers)
    del kept[:-MAX_KEPT_GRAPHS]


def _key(decoder: TreeModel, state: State, shape: SearchShape) -> Any:
    """Everything that a recording depends on, except the content of its buffers."""
    kind, memory = state.mask.device.type, state.memory
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    assert isinstance(decoder, nn.Module)
    weights = [part.data_ptr() for part in (*decoder.parameters(), *decoder.buffers())]
    cache = [(tuple(keys.shape[:2]), keys.shape[3], keys.dtype) for keys, _ in state.cache]
    crossed = memory and (tuple(memory.mask.shape), [(keys.shape, keys.dtype) for keys, _ in memory.layers])
    return shape, len(state.mask), str(state.mask.device), cache, crossed, autocast, weights


def _zeros(memory: Memory) -> Memory:
    layers = tuple((torch.zeros_like(keys), torch.zeros_like(values)) for keys, values in memory.layers)
    return replace(memory, layers=layers, mask=torch.zeros_like(memory.mask))


@contextmanager
def _uncached_autocast(kind: str) -> Iterator[None]:
    """Autocast without its cache of cast weights: copies made in a recording would not exist outside of it."""
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False):
            yield
    else:
        yield
