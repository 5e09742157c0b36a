"""Calls with several trained models over one decoder."""

from mmprefix.inference.several.joined import join_models

__all__ = ["join_models"]
