"""Saved models in use."""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.inference.predictor import Predictor as Predictor
    from mmprefix.inference.predictor import load as load

__all__ = ["Predictor", "load"]
__getattr__ = lazy_exports(__name__, {"Predictor": "predictor", "load": "predictor"})
