"""mmprefix: frozen encoders, a small trained mapper, a frozen language model; pictures and sounds in, text out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmprefix.version import __version__ as __version__

if TYPE_CHECKING:
    from mmprefix import metrics as metrics
    from mmprefix.errors import InputError as InputError
    from mmprefix.generation.options import GenerateOptions as GenerateOptions
    from mmprefix.inference.loading import load as load
    from mmprefix.inference.predictor import Predictor as Predictor
    from mmprefix.media.source import FrameSequence as FrameSequence
    from mmprefix.media.source import Waveform as Waveform
    from mmprefix.types import Candidate as Candidate

_PUBLIC = {
    "Candidate": "mmprefix.types",
    "FrameSequence": "mmprefix.media.source",
    "GenerateOptions": "mmprefix.generation.options",
    "InputError": "mmprefix.errors",
    "Predictor": "mmprefix.inference.predictor",
    "Waveform": "mmprefix.media.source",
    "load": "mmprefix.inference.loading",
    "metrics": "mmprefix.metrics",
}
__all__ = ["Candidate", "FrameSequence", "GenerateOptions", "InputError", "Predictor", "Waveform", "load", "metrics"]


def __getattr__(name: str) -> Any:
    """Public names are imported at their first use, so that ``import mmprefix`` costs nothing."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mmprefix' has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    return module if _PUBLIC[name] == f"mmprefix.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    """Public names alone, for completion in a notebook."""
    return sorted(__all__)
