"""Metrics of captions, spoken language understanding and detection: pure functions, and one torchmetrics class.

The names ``caption``, ``slu`` and ``detection`` of this package are functions; import from the modules of the same
names by ``from mmprefix.metrics.caption import ...``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmprefix.metrics.caption import caption
from mmprefix.metrics.detection import DetCurve, det_curve, detection
from mmprefix.metrics.edit_distance import cer, wer
from mmprefix.metrics.fense import FenseModels
from mmprefix.metrics.meteor_spice import NotAvailable
from mmprefix.metrics.slu import slu

if TYPE_CHECKING:
    from mmprefix.metrics.accumulate import CaptionItem as CaptionItem
    from mmprefix.metrics.accumulate import CaptionScores as CaptionScores

_LAZY = {"CaptionItem": "mmprefix.metrics.accumulate", "CaptionScores": "mmprefix.metrics.accumulate"}
__all__ = [
    "CaptionItem",
    "CaptionScores",
    "DetCurve",
    "FenseModels",
    "NotAvailable",
    "caption",
    "cer",
    "det_curve",
    "detection",
    "slu",
    "wer",
]


def __getattr__(name: str) -> Any:
    """Import the torchmetrics classes at their first use: the functions need no torch."""
    if name not in _LAZY:
        raise AttributeError(f"module 'mmprefix.metrics' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
