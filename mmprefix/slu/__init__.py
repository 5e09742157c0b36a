"""Spoken language understanding: questions from a schema, intent and slots from their answers."""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.slu.data import QuestionData as QuestionData

__all__ = ["QuestionData"]
__getattr__ = lazy_exports(__name__, {"QuestionData": "data"})
