"""Ids and histories that a store of users takes, checked before anything is written."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from mmprefix.errors import InputError, require_text

LONGEST_ID = 255
_BREAKS = ("Cc", "Zl", "Zp")  # control characters, separators of lines and paragraphs


def require_user(user: str) -> None:
    """InputError unless ``user`` is a text of 1 to 255 characters, none of them a control character or line break."""
    if not isinstance(user, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"user: {user!r} is no text; an id is a text of 1 to {LONGEST_ID} characters")
    if not 1 <= len(user) <= LONGEST_ID:
        raise InputError(f"user: an id has 1 to {LONGEST_ID} characters, not {len(user)}")
    require_text("user", user)
    if any(unicodedata.category(character) in _BREAKS for character in user):
        raise InputError(f"user: {user!a} holds a control character or a line break; an id is one line of text")


def checked_texts(texts: Iterable[str]) -> list[str]:
    """The texts of a history as a list, which may be empty. Raises InputError for one that is no text, by its place."""
    if isinstance(texts, str):
        raise InputError("history: one text; a list of texts is needed")
    checked = list(texts)
    for place, text in enumerate(checked, start=1):
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"history: text {place} is {text!r}; texts are needed")
        require_text(f"history: text {place}", text)
    return checked
