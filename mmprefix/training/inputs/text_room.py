"""Positions that a model's prefix and prompt leave for a text in its decoder."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from mmprefix.data.collate import collate_inputs
from mmprefix.data.manifest import InputRef
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.observer import Observer
from mmprefix.model import PrefixLM
from mmprefix.types import AnyPrefix, DeepPrefix, Features, MixedPrefix, Prefix, split_side
from mmprefix.weights.source import Provenance

_MOST_WORDS = 1 << 12


class DecoderRoom:
    """``mmprefix.data.long_captions.TextRoom`` of a model with a decoder of tokens.

    The length of a prefix is tried out: with one frame and with two. Where both are equal no input is encoded; where
    not, the longest input is, and then those whose captions do not fit beside its prefix. Positions that a prefix may
    still grow by (``Mapper.growth``) are kept free, so that a text that fits does so in every later task.
    """

    def __init__(self, model: PrefixLM, decoder: ComposedDecoder) -> None:
        self.model, self.codec, self.limit = model, decoder.codec, decoder.max_positions
        self._soft: set[str] = set()  # branches whose prefix is run before the prompt
        self._mappers = {name: self._ready(cast(Mapper, mapper)) for name, mapper in model.mappers.items()}
        self._fixed = {name: self._tried(name) for name in model.mappers}
        own = None if model.task_prefix is None else self._ready(model.task_prefix)
        self._task = 0 if own is None else self._length("", own(Features.empty(1, self._device()))) + _growth(own)
        self._longest: dict[str, int] = {}
        self._encoded: dict[InputRef, int] = {}
        self._texts: dict[tuple[bool, str, str], int] = {}

    def measure(self, longest: Mapping[str, InputRef]) -> None:
        """Encode the ``longest`` input of each branch whose prefix depends on its length."""
        for name, ref in longest.items():
            if name in self._fixed and self._fixed[name] is None:
                self._longest[name] = self._encode(name, ref)

    def left(self, inputs: Mapping[str, InputRef], texts: tuple[str, str], *, exact: bool = False) -> int:
        """Positions for a text after prefix, context and prompt; with ``exact`` the inputs are encoded if need be."""
        used = self._task
        for name, ref in inputs.items():
            fixed = self._fixed.get(name, 0)
            if fixed is None:
                fixed = self._encode(name, ref) if exact else self._longest.get(name, 0)
            used += fixed
        first = not self._soft & {"", *inputs}
        if (first, *texts) not in self._texts:
            prompt = self.model.wording.render_prompt(*texts)
            ids = [*self.codec.prompt_ids(prompt, first), *self.codec.question_ids(prompt, "")]
            self._texts[first, *texts] = len(self.codec.opening_ids) + len(ids)
        return self.limit - used - self._texts[first, *texts]

    def count(self, texts: list[str]) -> list[int]:
        """Tokens of each text alone, its end included."""
        return self.codec.count(texts)

    def length(self, texts: tuple[str, str], text: str) -> int:
        """Tokens of ``text`` after context and prompt, its end included."""
        return len(self.codec.target_ids(self.model.wording.render_prompt(*texts), text))

    def shorten(self, texts: tuple[str, str], text: str, most: int) -> str:
        """The first words of ``text`` that fit, or letters where it has no spaces."""
        words = text.split()[:_MOST_WORDS]
        parts, space = (words, " ") if len(words) > 1 else (list(text), "")
        low, high = 0, len(parts)
        while low < high:  # tokens grow with the number of words
            middle = (low + high + 1) // 2
            fits = self.length(texts, space.join(parts[:middle])) <= most
            low, high = (middle, high) if fits else (low, middle - 1)
        return space.join(parts[:low])

    def _tried(self, name: str) -> int | None:
        """Positions of the prefix of branch ``name``; None where they depend on the number of its frames."""
        mapper = self._mappers[name]
        lengths: set[int] = set()
        for frames in (1, 2):
            features = self._features(frames, mapper.sizes.frames, mapper.sizes.summary)
            context = self._features(1, mapper.sizes.context_frames, mapper.sizes.context_summary)
            try:
                with _as_in_use(mapper):
                    prefix: AnyPrefix = mapper(features, context if mapper.reads_context else None)
                lengths.add(self._length(name, prefix) + _growth(mapper))
            except InputError:  # a mapper that is not ready yet
                lengths.add(0)
        return lengths.pop() if len(lengths) == 1 else None

    def _ready(self, mapper: Mapper) -> Mapper:
        """``mapper``, or a copy in use where it is shown the training data later: its numbers do not matter here."""
        if not any(isinstance(part, Observer) and not part.known for part in mapper.modules()):
            return mapper
        mapper, sizes = copy.deepcopy(mapper).eval(), mapper.sizes
        for part in mapper.modules():
            if isinstance(part, Observer) and not part.known:
                part.observe(self._features(1, sizes.frames, sizes.summary))
                part.begin(_NoDecoder(sizes, self._device()))
        return mapper

    def _features(self, frames: int, width: int, summary: int) -> Features:
        count, device = frames if width else 0, self._device()
        mask = torch.ones(1, count, dtype=torch.bool, device=device)
        return Features(torch.zeros(1, count, width, device=device), mask, torch.zeros(1, summary, device=device))

    def _length(self, name: str, prefix: AnyPrefix) -> int:
        plain, terms = split_side(prefix)
        if isinstance(plain, MixedPrefix) or (isinstance(plain, Prefix) and not terms):
            self._soft.add(name)
        return int(plain.mask.sum())

    def _encode(self, name: str, ref: InputRef) -> int:
        """Positions of the prefix of one input; 0 where the encoder has no weights, as in a dry run."""
        if ref not in self._encoded:
            encoder = self.model.encoder(name)
            if any(parameter.is_meta for parameter in encoder.parameters()):
                return 0
            try:
                media = collate_inputs([encoder.preprocess(ref.source, ref.start, ref.end)])
            except InputError:  # a file that cannot be decoded is reported when it is read
                return 0
            mapper = self._mappers[name]
            with _as_in_use(self.model):
                prefix: AnyPrefix = mapper(encoder(media.to(self._device())), None)
            self._encoded[ref] = self._length(name, prefix) + _growth(mapper)
        return self._encoded[ref]

    def _device(self) -> torch.device:
        return next(iter(self.model.mappers.parameters()), next(self.model.decoder.parameters())).device


class _NoDecoder:
    """``TextReader`` without a decoder, for trials: only the shapes of what it gives are right."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        self.identity = Provenance("a trial", None, "")

    def token_ids(self, text: str) -> list[int]:
        return [0]

    def word_ids(self) -> list[int]:
        return [0]

    def token_vectors(self, ids: list[int]) -> Tensor:
        return torch.ones(len(ids), self.sizes.width, device=self.device)

    def token_key_values(self, ids: list[int]) -> DeepPrefix:
        sizes = self.sizes
        zeros = torch.zeros(sizes.layers, 1, sizes.heads, len(ids), sizes.head_width, device=self.device)
        return DeepPrefix(zeros, zeros, zeros.new_ones(1, len(ids), dtype=torch.bool))

    def word_vectors(self, text: str) -> Tensor:
        return self.token_vectors([0])

    def key_values(self, text: str, positions: int) -> DeepPrefix:
        return self.token_key_values([0] * positions)


def _growth(mapper: Mapper) -> int:
    """Positions that the prefix of ``mapper``, and of those inside it, may still grow by."""
    return sum(part.growth for part in mapper.modules() if isinstance(part, Mapper))


@contextmanager
def _as_in_use(module: nn.Module) -> Generator[None, None, None]:
    """Run ``module`` as a trained one: dropout draws nothing, and a trial is no batch of BatchNorm's statistics."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def text_room(model: PrefixLM) -> DecoderRoom | None:
    """Room of ``model`` for texts; None where its decoder knows no limit."""
    decoder = model.decoder
    if not isinstance(decoder, ComposedDecoder) or not decoder.max_positions:
        return None
    return DecoderRoom(model, decoder)
