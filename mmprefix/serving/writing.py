"""One text piece by piece, as the model writes it, beside the batches: the Predictor's calls may come from threads."""

from __future__ import annotations

from collections.abc import Iterator

from mmprefix.serving.calls import InputToRead, ServedModel, TaskCall


def can_stream(call: TaskCall) -> bool:
    """True for one text an input: of several the best is known at the end alone."""
    return call.task == "caption" and dict(call.options).get("num_return", 1) == 1


def pieces(model: ServedModel, call: TaskCall, row: InputToRead) -> Iterator[str]:
    """Pieces of the text of one input; joined they are the text. Raises InputError."""
    for result in call.run(model.predictor, [row], 1):
        if isinstance(result, Exception):
            raise result
        yield result[0].text
