"""Data: manifests → batches by ``PairData``, the data module of every captioning recipe."""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.data.pairs import PairData as PairData

__all__ = ["PairData"]
__getattr__ = lazy_exports(__name__, {"PairData": "pairs"})
