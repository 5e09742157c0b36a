"""Users of rows: texts that a user wrote before, by user, and the place of both among the inputs of each row.

Earlier texts are read by a branch, or stand in the prompt (``wording.history``); both find them in the same place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmprefix.data.manifest.example import Example, InputRef
from mmprefix.data.manifest_file import RowError, manifest_rows
from mmprefix.errors import InputError
from mmprefix.prompt_template import PromptTemplate

BRANCH = "history"
"""Name of the branch, and of the manifest's column, that reads a user's earlier texts."""

USER_BRANCH = "user"
"""Name of the branch, and of the manifest's column, that reads a user's id."""

NOBODY = "-"
"""Id of an input without a user, which no table of users holds."""

Histories = Mapping[str, tuple[str, ...]]


def read_histories(file: str | Path) -> dict[str, tuple[str, ...]]:
    """Texts by user of ``file``: JSON lines {"user": ..., "history": [texts]}. InputError names a bad line."""
    histories: dict[str, tuple[str, ...]] = {}
    for line, row in manifest_rows(Path(file)):
        try:
            user, texts = _user_and_texts(row)
        except RowError as error:
            raise InputError(f"{file}:{line}: {error}") from error
        if user in histories:
            raise InputError(f"{file}:{line}: user {user!r} is there twice; give all texts of a user in one line")
        histories[user] = texts
    if not histories:
        raise InputError(f"{file}: has no user")
    return histories


def _user_and_texts(row: Any) -> tuple[str, tuple[str, ...]]:
    if isinstance(row, RowError):
        raise row
    user = row.get("user") if isinstance(row, dict) else None
    texts = row.get("history", []) if isinstance(row, dict) else None
    if not isinstance(user, str) or not user:
        raise RowError('expected {"user": a text, "history": [texts]}')
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RowError(f"history of user {user!r} must be a list of texts")
    return user, tuple(text for text in texts if text.strip())


def add_histories(examples: Sequence[Example], histories: Histories) -> list[Example]:
    """``examples`` whose branch ``history`` reads the texts of their user, but none that is to be written.

    A row that has a history of its own keeps it. A row without user, of a user without texts, or of an unknown one, has
    none.
    """
    return [_with_history(example, histories) for example in examples]


def _with_history(example: Example, histories: Histories) -> Example:
    if BRANCH in example.inputs or example.user is None:
        return example
    own = {text.strip() for text in example.captions}
    texts = tuple(text for text in histories.get(example.user, ()) if text.strip() not in own)
    if not texts:
        return example
    return replace(example, inputs={**example.inputs, BRANCH: InputRef("", texts=texts)})


def add_strangers(examples: Sequence[Example]) -> list[Example]:
    """``examples`` in which a row without user is nobody's, as an input of a call is."""
    nobody = InputRef("", texts=(NOBODY,))
    return [
        example if USER_BRANCH in example.inputs else replace(example, inputs={**example.inputs, USER_BRANCH: nobody})
        for example in examples
    ]


def earlier_texts(example: Example) -> tuple[str, ...]:
    """Earlier texts of the row's user, none of which is to be written."""
    ref = example.inputs.get(BRANCH)
    return () if ref is None or ref.texts is None else ref.texts


def drawn_texts(texts: Sequence[str], most: int, dropout: float, seed: list[int]) -> Sequence[str]:
    """At most ``most`` of ``texts``, in their order; none with probability ``dropout``."""
    draw = np.random.default_rng(seed)
    if draw.random() < dropout:
        return ()
    if len(texts) <= most:
        return texts
    return [texts[int(number)] for number in sorted(draw.choice(len(texts), most, replace=False))]


def longest_context(example: Example, context: str, wording: PromptTemplate | None) -> str:
    """``context`` behind the longest texts that may be drawn: what takes most positions."""
    if wording is None:
        return context
    return wording.with_history(sorted(earlier_texts(example), key=len), context)
