"""One text piece by piece, as the model writes it, beside the batches: the Predictor's calls may come from threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from mmprefix.serving.calls import InputToRead, ServedModel, TaskCall


def can_stream(model: ServedModel, call: TaskCall) -> bool:
    """True for one text an input that is not chosen among several: of those the best is known at the end alone."""
    is_one = call.task == "caption" and dict(call.options).get("num_return", 1) == 1
    return is_one and model.predictor.neighbours is None


def pieces(model: ServedModel, call: TaskCall, row: InputToRead) -> Iterator[str]:
    """Pieces of the text of one input; joined they are the text. Closing it ends the search. Raises InputError."""
    beside = {"prompt": row.prompt, "context": row.context, "user": row.user, "history": row.history}
    options: dict[str, Any] = {
        **dict(call.options),
        **{name: text for name, text in beside.items() if text is not None},
    }
    options.pop("num_return", None)
    with closing(model.predictor.stream(row.value, **options)) as written:
        yield from written
