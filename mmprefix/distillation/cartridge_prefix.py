"""Cartridge of a file as a mapper, so that a recipe can name it: ``model.prefix``, the task's prefix."""

from __future__ import annotations

from mmprefix.decoders.base import Decoder
from mmprefix.distillation.cartridge import load_composed
from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.observer import TextReader
from mmprefix.mappers.p_tuning_v2 import DeepTable


class CartridgePrefix(DeepTable):
    """Keys and values of a cartridge, the same for every input; training goes on from them.

    A saved model holds them as a ``DeepTable``, and needs the file no more.

    Args:
        file: a cartridge of the model's own decoder, as ``mmprefix distil`` writes it; a list of several is joined by
            ``mmprefix.distillation.compose``, one after the other.
    """

    def __init__(self, sizes: Sizes, *, file: str | list[str]) -> None:
        files = [file] if isinstance(file, str) else file
        cartridge = load_composed(files)
        super().__init__(sizes, length=cartridge.positions, frozen=min(cartridge.frozen, cartridge.positions - 1))
        cartridge.require_sizes(sizes.layers, sizes.heads, sizes.head_width)
        self.fill(cartridge.prefix())
        self.files, self._cartridge, self._checked = files, cartridge, False

    @property
    def known(self) -> bool:
        """True once the decoder is known to be the one that the cartridge was made for."""
        return self._checked

    def begin(self, reader: TextReader) -> None:
        """Raise InputError for another decoder than the cartridge's."""
        if isinstance(reader, Decoder):
            try:
                self._cartridge.require(reader)
            except InputError as error:
                raise InputError(f"model.prefix: {', '.join(self.files)}: {error}") from error
        self._checked = True

    def merged(self) -> DeepTable:
        """Plain table of the same tensors, which names no file."""
        table = DeepTable(self.sizes, length=self.length, frozen=self.frozen)
        table.table = self.table
        if self.frozen:
            table.sink = self.sink
        return table.train(self.training)
