"""Files and values in memory → tensors: the only place where sound, pictures, videos and numbers come in."""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.media.source import FrameSequence as FrameSequence
    from mmprefix.media.source import Waveform as Waveform

__all__ = ["FrameSequence", "Waveform"]
__getattr__ = lazy_exports(__name__, {"FrameSequence": "source", "Waveform": "source"})
