"""mmprefix: frozen encoders, a small trained mapper, a frozen language model; pictures and sounds in, text out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmprefix import metrics as metrics
    from mmprefix.media import Waveform as Waveform
    from mmprefix.options import GenerateOptions as GenerateOptions
    from mmprefix.predictor import Predictor as Predictor
    from mmprefix.predictor import load as load
    from mmprefix.types import Candidate as Candidate
    from mmprefix.types import InputError as InputError

__version__ = "0.1.0"

_PUBLIC = {
    "Candidate": "mmprefix.types",
    "GenerateOptions": "mmprefix.options",
    "InputError": "mmprefix.types",
    "Predictor": "mmprefix.predictor",
    "Waveform": "mmprefix.media",
    "load": "mmprefix.predictor",
    "metrics": "mmprefix.metrics",
}
__all__ = ["Candidate", "GenerateOptions", "InputError", "Predictor", "Waveform", "load", "metrics"]


def __getattr__(name: str) -> Any:
    """Public names are imported at their first use, so that ``import mmprefix`` costs nothing."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mmprefix' has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    return module if _PUBLIC[name] == f"mmprefix.{name}" else getattr(module, name)
