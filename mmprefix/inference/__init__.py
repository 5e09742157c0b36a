"""Saved models in use."""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.inference.loading import load as load
    from mmprefix.inference.predictor import Predictor as Predictor

__all__ = ["Predictor", "load"]
__getattr__ = lazy_exports(__name__, {"Predictor": "predictor", "load": "loading"})
