"""Cartridge: keys and values of a decoder's cache that stand for a long text, kept in a file.

Cartridges (Eyuboglu et al.), https://arxiv.org/abs/2506.06266. A cartridge stands in front of any batch of its decoder:
as the task's prefix of a model, as a user's row, or directly, another one in each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmprefix.atomic import write_atomically
from mmprefix.decoders.base import Decoder
from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes, join_layers
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.types import DeepPrefix

_NAMES = {"keys", "values", "frozen"}


@dataclass(frozen=True)
class Cartridge:
    """Keys and values (L H P K) of one text, the number of first positions that were not trained, and their decoder.

    ``decoder`` is the hash of the decoder's weights. Keys keep the rotary positions that they were trained at.
    """

    keys: Tensor
    values: Tensor
    frozen: int
    decoder: str

    @classmethod
    def of(cls, prefix: DeepPrefix, frozen: int, decoder: Decoder) -> Cartridge:
        """Cartridge of a prefix of one input (L 1 H P K)."""
        keys, values = (part[:, 0].detach().cpu() for part in (prefix.keys, prefix.values))
        return cls(keys, values, frozen, decoder.identity.sha256)

    @property
    def positions(self) -> int:
        """P, its positions in the cache."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def half(self) -> Cartridge:
        """Copy in float16."""
        return Cartridge(self.keys.half(), self.values.half(), self.frozen, self.decoder)

    def prefix(self, count: int = 1, device: torch.device | str = "cpu") -> DeepPrefix:
        """Deep prefix (L B H P K) in front of ``count`` inputs, without a copy for each."""
        return stack([self], device).expand(count)

    def require(self, decoder: Decoder) -> None:
        """Raise InputError for another decoder than the one that it was made for."""
        self.require_sizes(decoder.layers, decoder.heads, decoder.head_width)
        if self.decoder and decoder.identity.sha256 not in ("", self.decoder):
            raise InputError(
                f"cartridge: was made for weights {self.decoder[:12]}, the decoder {decoder.identity.source!r} has "
                f"{decoder.identity.sha256[:12]}; use its own decoder"
            )

    def require_sizes(self, *theirs: int) -> None:
        """Raise InputError unless layers, heads and head width of a decoder are its own."""
        own = (self.keys.shape[0], self.keys.shape[1], self.keys.shape[3])
        if own != theirs:
            raise InputError(f"cartridge: has layers, heads and width {own}, the decoder {theirs}; use its own decoder")

    def mapper(self, sizes: Sizes) -> DeepTable:
        """The cartridge as a mapper, to be a model's task prefix: ``PrefixLM({}, decoder, cartridge.mapper)``."""
        table = DeepTable(sizes, length=self.positions, frozen=min(self.frozen, self.positions - 1))
        table.fill(self.prefix())
        return table

    def vector(self) -> Tensor:
        """Numbers (P*2*L*H*K,) float32, as ``DeepUserPrefix.add`` takes them for a user's row."""
        return join_layers(self.prefix()).flatten().float()

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by name, as ``UserStore.put`` takes them; its ``key`` holds ``decoder``."""
        return {"keys": self.keys, "values": self.values, "frozen": torch.tensor(self.frozen)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], decoder: str) -> Cartridge:
        """The inverse of ``tensors``. Raises InputError for tensors of something else."""
        if tensors.keys() != _NAMES or not _are_positions(*(tensors[name] for name in ("keys", "values", "frozen"))):
            raise InputError(
                "cartridge: needs the tensors keys and values (L H P K), and frozen, a whole number from 0 up to P"
            )
        return cls(tensors["keys"], tensors["values"], int(tensors["frozen"]), decoder)

    def save(self, file: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors().items()}
        data = save(tensors, {"decoder": self.decoder})
        write_atomically(Path(file), lambda fresh: fresh.write_bytes(data))

    @classmethod
    def load(cls, file: str | Path) -> Cartridge:
        """Cartridge of a file of ``save``. Raises InputError for a file that is missing or is none."""
        try:
            with safe_open(file, "pt") as opened:
                metadata: Any = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no dictionary)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: cannot be read as a cartridge ({error})") from error
        try:
            return cls.from_tensors(tensors, metadata.get("decoder", ""))
        except InputError as error:
            raise InputError(f"{file}: {error}") from error


def _are_positions(keys: Tensor, values: Tensor, frozen: Tensor) -> bool:
    """True for keys and values (L H P K) of one shape and P >= 1, and a whole number of frozen ones among them."""
    if keys.dim() != 4 or keys.shape != values.shape or not keys.numel():
        return False
    if not (keys.is_floating_point() and values.is_floating_point()) or frozen.is_floating_point() or frozen.dim():
        return False
    return 0 <= int(frozen) <= keys.shape[2]


def compose(first: Cartridge, *others: Cartridge) -> Cartridge:
    """All one after the other, with one sink: the frozen positions of ``others`` are left out.

    Raises InputError for cartridges of several decoders.
    """
    theirs = {(each.decoder, each.keys[:, :, :0].shape) for each in (first, *others)}
    if len(theirs) > 1:
        raise InputError(f"cartridges: are of {len(theirs)} decoders; compose those of one")
    keys, values = (
        torch.cat([own, *(getattr(each, name)[:, :, each.frozen :] for each in others)], dim=2)
        for name, own in (("keys", first.keys), ("values", first.values))
    )
    return Cartridge(keys, values, first.frozen, first.decoder)


def load_composed(files: Sequence[str | Path]) -> Cartridge:
    """Cartridge of one file, or ``compose`` of those of several. Raises InputError, which names the file."""
    if not files:
        raise InputError("cartridges: no file; give one, or several that are joined")
    cartridges = [Cartridge.load(file) for file in files]
    for file, cartridge in zip(files[1:], cartridges[1:], strict=True):
        try:
            compose(cartridges[0], cartridge)
        except InputError as error:
            raise InputError(f"{file}: is of another decoder than {files[0]}; compose those of one") from error
    return compose(*cartridges)


def stack(cartridges: Sequence[Cartridge], device: torch.device | str = "cpu") -> DeepPrefix:
    """Deep prefix (L B H P K) with another cartridge in each row; shorter ones have positions that are not real."""
    longest = max(cartridge.positions for cartridge in cartridges)
    rows = [(c.keys, c.values, longest - c.positions) for c in cartridges]
    pad = torch.nn.functional.pad
    keys = torch.stack([pad(keys, (0, 0, 0, missing)) for keys, _, missing in rows], dim=1)
    values = torch.stack([pad(values, (0, 0, 0, missing)) for _, values, missing in rows], dim=1)
    mask = torch.arange(longest) < torch.tensor([[cartridge.positions] for cartridge in cartridges])
    return DeepPrefix(keys.to(device), values.to(device), mask.to(device))
