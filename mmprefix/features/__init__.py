"""Feature store: features of frozen encoders, computed once, kept on disk, streamed in training."""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.features.stream_data import StreamData as StreamData

__all__ = ["StreamData"]
__getattr__ = lazy_exports(__name__, {"StreamData": "stream_data"})
