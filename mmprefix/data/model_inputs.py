"""The value in which a model says what it reads; a data module needs to know nothing else of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from mmprefix.data.histories import BRANCH
from mmprefix.data.long_captions import TextRoom
from mmprefix.errors import InputError
from mmprefix.media.kinds import KINDS
from mmprefix.media.source import Source
from mmprefix.prompt_template import PromptTemplate
from mmprefix.types import FeatureRow

LoadInput = Callable[[Source, float, float | None], Tensor | FeatureRow]
"""(source, start, end in seconds) → the tensor that an encoder reads, or the features stored for it. Picklable."""

TokenCounter = Callable[[list[str]], list[int]]
"""Texts → the number of tokens that the decoder writes each of them with."""


@dataclass(frozen=True)
class ModelInputs:
    """Inputs of a model, by branch.

    Args:
        load: reads one input, by branch name; the feature cache replaces it by a look-up.
        kinds: input kind (``mmprefix.media.kinds``) by branch name. A branch that is not listed has the kind of its own
            name, or image where that is no kind.
        reads_text: a row may be text alone.
        captions_alone: the model has no branch and trains what is its own on captions: a row needs no input.
        reads_context: the model has a place for a context; False refuses the option ``data.context``.
        count_tokens: needed for ``data.max_tokens``; None: letters are counted.
        wording: of a prompt that holds a user's earlier texts; None: it holds none.
        text_room: makes what tells the decoder's positions for captions; None, or a maker of None: there is no limit.
    """

    load: Mapping[str, LoadInput] = field(default_factory=dict[str, LoadInput])
    kinds: Mapping[str, str] = field(default_factory=dict[str, str])
    reads_text: bool = False
    captions_alone: bool = False
    reads_context: bool = True
    count_tokens: TokenCounter | None = None
    text_room: Callable[[], TextRoom | None] | None = None
    wording: PromptTemplate | None = None

    @property
    def branches(self) -> dict[str, str]:
        """Kind of each branch, by name."""
        return {name: self.kinds.get(name, name if name in KINDS else "image") for name in self.load}

    def require_use(self, contexts: Sequence[str], *, questions: bool, histories: str | None) -> None:
        """Raise InputError where the model does not read what a data module has: columns, questions, histories."""
        if not (self.load or self.reads_text or (self.captions_alone and not questions)):
            raise InputError("model.branches: there is none, and without model.wording.context no text is read either")
        if contexts and not self.reads_context:
            names = ", ".join(contexts)
            raise InputError(
                f"data.context {names}: this model reads none; give model.wording.context, or leave it out"
            )
        if histories is not None and BRANCH not in self.text_columns:
            raise InputError(
                f"data.histories {histories}: this model has no branch named {BRANCH} that reads texts, and no "
                "model.wording.history"
            )

    @property
    def text_branches(self) -> list[str]:
        """Branches that read the text in the manifest's column of their own name."""
        return [name for name, kind in self.branches.items() if KINDS[kind].lists == "texts"]

    @property
    def text_columns(self) -> list[str]:
        """Columns of texts that are read: those of branches, and the history that stands in the prompt."""
        return list(dict.fromkeys([*self.text_branches, *([] if self.wording is None else [BRANCH])]))


@runtime_checkable
class HasModelInputs(Protocol):
    """A LightningModule that a data module can read for."""

    @property
    def inputs(self) -> ModelInputs: ...
