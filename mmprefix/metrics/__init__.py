"""Measures of what a model says: pure functions, and one torchmetrics class that is imported at its first use.

``caption`` here is the function; its module is reached by ``from mmprefix.metrics.caption import ...``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmprefix.metrics.caption import caption
from mmprefix.metrics.fense import FenseModels
from mmprefix.metrics.java import NotAvailable

if TYPE_CHECKING:
    from mmprefix.metrics.collect import CaptionItem as CaptionItem
    from mmprefix.metrics.collect import CaptionScores as CaptionScores

_LAZY = {"CaptionItem": "mmprefix.metrics.collect", "CaptionScores": "mmprefix.metrics.collect"}
__all__ = ["CaptionItem", "CaptionScores", "FenseModels", "NotAvailable", "caption"]


def __getattr__(name: str) -> Any:
    """The torchmetrics classes, imported when asked for: the functions need no torch."""
    if name not in _LAZY:
        raise AttributeError(f"module 'mmprefix.metrics' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
