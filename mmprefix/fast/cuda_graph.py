"""A search's steps on a GPU as one recorded CUDA graph.

A step of a small language model is hundreds of short kernels. To launch them one by one takes several times longer
than to run them, so the launches are recorded once and replayed: what is read and written stays at one place, and only
its content changes. A recording is kept for the next search of the same shape.

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

from mmprefix.kv_cache import cache as caches
from mmprefix.kv_cache.state import Layer, Memory, State

if TYPE_CHECKING:
    from mmprefix.kv_cache.protocols import TreeModel

log = logging.getLogger(__name__)

MIN_STEPS = 4  # steps for which a recording pays
MAX_KEPT_GRAPHS = 2  # recordings of a language model, each with its cache
MIN_BUSY_HYPOTHESES = (
    256  # lines that keep a GPU busy: with fewer, a step takes as long whether inputs have left or not
)

_kept: WeakKeyDictionary[nn.Module, list[GraphBuffers]] = (
    WeakKeyDictionary()
)  # the latest last; none while it is in use
_refused: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def can_record(decoder: TreeModel, state: State, steps: int) -> bool:
    """Whether a search behind ``state`` is one that can be recorded, and long enough.

    A model that could not be recorded stays on stages, whose steps are then run singly: its results keep their bits.
    """
    return state.mask.is_cuda and steps >= MIN_STEPS and not decoder.lm.training


@contextmanager
def open_graph_tree(decoder: TreeModel, state: State, width: int, steps: int) -> Iterator[CudaGraphTree]:
    """A tree of at most ``steps`` steps of ``width`` nodes, on a stage that an earlier search left, or a new one."""
    tree = CudaGraphTree(decoder, state, width, steps)
    yield tree
    tree.release()


class CudaGraphTree:
    """A ``TokenTree`` whose cache has its full length from the beginning, at a fixed address."""

    def __init__(self, decoder: TreeModel, state: State, width: int, steps: int) -> None:
        self.decoder, self.steps = decoder, steps
        self.stage = _stage(decoder, state, width, steps)
        self.stage.load(state)

    def step(self, tokens: Tensor, ancestry: Tensor) -> Tensor:
        """Tokens (B W), one for each line → logits (B W V), to be read before the next step."""
        return self.stage.step(self.decoder, tokens, ancestry)

    def should_compact(self, still: int, count: int) -> bool:
        """When half of a large batch is done."""
        return count * self.stage.width > MIN_BUSY_HYPOTHESES and still <= count / 2

    def select(self, rows: Tensor) -> None:
        """Only these inputs go on, on a smaller stage."""
        before = self.stage
        state = before.state().select(rows)
        self.stage = _stage(self.decoder, state, before.width, self.steps, before.trunk)
        self.stage.load(state, before.done)
        _give_back(self.decoder, before)

    def release(self) -> None:
        """Lets the next search have the stage."""
        _give_back(self.decoder, self.stage)


class GraphBuffers:
    """Where a search of one shape takes place: all that a step reads and writes, and the recording of a step.

    B inputs, T positions of a trunk, ``steps`` steps of W nodes; the cache is L pairs (B H T+steps*W K).
    """

    def __init__(self, decoder: TreeModel, state: State, width: int, steps: int, prefix_length: int) -> None:
        self.key, self.width, self.trunk, self.done = (
            _key(decoder, state, width, steps, prefix_length),
            width,
            prefix_length,
            0,
        )
        mask, room, count = state.mask, width * steps, len(state.mask)
        with torch.inference_mode(False):  # what is kept may be written to outside of it
            self.at = torch.zeros(width, dtype=torch.long, device=mask.device)  # where the next nodes are written
            self.depth = torch.zeros(count, width, dtype=torch.long, device=mask.device)
            self.embeds = torch.zeros_like(decoder.embed(self.depth))
            self.sees = torch.zeros(count, width, room, dtype=torch.bool, device=mask.device)
            self.mask = torch.zeros(count, prefix_length, dtype=torch.bool, device=mask.device)
            self.cache = DynamicCache()
            for keys, values in state.cache:
                shape = (*keys.shape[:2], prefix_length + room, keys.shape[3])
                self.cache.layers.append(_Fixed(*(p.new_zeros(shape) for p in (keys, values)), at=self.at))
            self.memory = state.memory and _zeros(state.memory)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None  # of the recorded step
        self.warm = False

    def load(self, state: State, done: int = 0) -> None:
        """Begins with what ``state`` has read, ``done`` steps of a search included."""
        self.done = done
        self.mask.copy_(state.mask)
        self.sees.zero_()
        for layer, (keys, values) in zip(self.cache.layers, state.cache, strict=True):
            cast(_Fixed, layer).load(keys, values)
        if self.memory and state.memory:
            self.memory.mask.copy_(state.memory.mask)
            for here, there in zip(self.memory.layers, state.memory.layers, strict=True):
                here[0].copy_(there[0])
                here[1].copy_(there[1])

    def state(self) -> State:
        """What was loaded, and the nodes since."""
        return State(tuple(cast(_Fixed, layer).whole for layer in self.cache.layers), self.mask, None, self.memory)

    def step(self, decoder: TreeModel, tokens: Tensor, ancestry: Tensor) -> Tensor:
        """The first step of a new stage is run, the second recorded, and from then on all are replayed."""
        begin = self.trunk + self.done * self.width
        torch.arange(begin, begin + self.width, out=self.at)
        self.embeds.copy_(decoder.embed(tokens))
        self.depth.fill_(self.done)
        self.sees[:, :, : ancestry.shape[-1]] = ancestry
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
            found = decoder.forward_tokens(
                state, self.cache, self.embeds, self.sees, decoder.position_ids(state, self.depth)
            )
            return decoder.logits(found)

    def _record(self, decoder: TreeModel) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.logits = self._run(decoder)
        except RuntimeError as error:  # a model that asks the GPU for a value, say
            _refused[decoder.lm] = True
            reason = str(error).strip().splitlines()[0]
            log.warning(
                "this language model's steps cannot be recorded as a CUDA graph, they are run singly: %s", reason
            )
        else:
            self.graph = graph


class _Fixed(caches.DynamicLayer):
    """Keys and values (B H T K) of the full length, written to at ``at`` (W,) and read as a whole."""

    def __init__(self, keys: Tensor, values: Tensor, at: Tensor) -> None:
        super().__init__()
        self.at = at
        caches.set_layer(self, keys, values)

    @property
    def whole(self) -> Layer:
        """Both, with what is not written yet."""
        return cast(Layer, (self.keys, self.values))

    def load(self, keys: Tensor, values: Tensor) -> None:
        """Begins with these; what follows is hidden by the mask until it is written."""
        for here, there in zip(self.whole, (keys, values), strict=True):
            here[:, :, : there.shape[2]].copy_(there)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Layer:
        keys, values = self.whole
        keys.index_copy_(2, self.at, key_states.to(keys.dtype))
        values.index_copy_(2, self.at, value_states.to(values.dtype))
        return keys, values


def _stage(decoder: TreeModel, state: State, width: int, steps: int, trunk: int | None = None) -> GraphBuffers:
    """One that was left, taken away from the others as long as it is used, or a new one."""
    trunk = state.mask.shape[1] if trunk is None else trunk
    key, kept = _key(decoder, state, width, steps, trunk), _kept.get(decoder.lm, [])
    for place, stage in enumerate(kept):
        if stage.key == key:
            return kept.pop(place)
    return GraphBuffers(decoder, state, width, steps, trunk)


def _give_back(decoder: TreeModel, stage: GraphBuffers) -> None:
    kept = _kept.setdefault(decoder.lm, [])
    kept.append(stage)
    del kept[:-MAX_KEPT_GRAPHS]


def _key(decoder: TreeModel, state: State, width: int, steps: int, trunk: int) -> Any:
    """All that a recording depends on but for the content of what it reads."""
    kind, held = state.mask.device.type, state.memory
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    module = cast(nn.Module, decoder)
    weights = [part.data_ptr() for part in (*module.parameters(), *module.buffers())]
    cache = [(tuple(keys.shape[:2]), keys.shape[3], keys.dtype) for keys, _ in state.cache]
    looked = held and (tuple(held.mask.shape), [(keys.shape, keys.dtype) for keys, _ in held.layers])
    return width, steps, trunk, len(state.mask), str(state.mask.device), cache, looked, autocast, weights


def _zeros(memory: Memory) -> Memory:
    layers = tuple((torch.zeros_like(keys), torch.zeros_like(values)) for keys, values in memory.layers)
    return replace(memory, layers=layers, mask=torch.zeros_like(memory.mask))


@contextmanager
def _uncached_autocast(kind: str) -> Iterator[None]:
    """Autocast as it is, but it keeps no copy of weights: one made in a recording would be gone outside."""
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False):
            yield
    else:
        yield
