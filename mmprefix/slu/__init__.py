"""Spoken language understanding: a schema becomes questions, answers become intent and slots."""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.slu.data import QuestionData as QuestionData

__all__ = ["QuestionData"]
__getattr__ = lazy_exports(__name__, {"QuestionData": "data"})
