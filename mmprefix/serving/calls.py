"""Calls on a model: what a request asks for, as a key that equal requests share, and its run over their inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.slu.schema import Schema, read_schema, shipped_schemas
from mmprefix.types import Candidate

Task = Literal["caption", "understand", "detect"]


@dataclass(frozen=True)
class ServedModel:
    """A model and the name that requests know it by."""

    name: str
    predictor: Predictor

    @property
    def tasks(self) -> list[Task]:
        """Tasks that the model was trained for: captions, and understanding or detection where it was."""
        task = type(self.predictor.settings.task).__name__
        more: dict[str, Task] = {"Understanding": "understand", "Detection": "detect"}
        return ["caption", more[task]] if task in more else ["caption"]


@dataclass(frozen=True)
class InputToRead:
    """One input with what goes with it. ``value`` is in memory: no text of a client is ever taken for a path."""

    value: Any
    prompt: str | None = None
    context: str | None = None
    user: str | None = None
    history: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TaskCall:
    """Model, task and options; requests with equal calls and inputs of like ``shape`` may share a batch.

    ``options`` are keyword arguments of the Predictor's method. ``beside`` names what the inputs bring: a model without
    users, say, refuses a batch in which one has a user.
    """

    model: str
    task: Task
    options: tuple[tuple[str, Any], ...] = ()
    shape: tuple[tuple[str, int], ...] = ()
    beside: frozenset[str] = frozenset()

    def run(self, predictor: Predictor, inputs: Sequence[InputToRead], size: int) -> Iterator[Any]:
        """A result or an InputError for each of ``inputs``, in their order: candidates, an answer, or log odds."""
        options: dict[str, Any] = dict(self.options)
        options |= {"batch_size": size, **_beside(predictor, inputs, self.beside)}
        values = iter([each.value for each in inputs])
        if self.task == "caption":
            return predictor.stream(values, **options)
        if self.task == "detect":
            return predictor.stream_detect(values, **options)
        schema = options.pop("schema", None)
        return predictor.stream_understand(values, schema=None if schema is None else schema_of(schema), **options)


def beside_of(inputs: InputToRead) -> frozenset[str]:
    """Names of what an input brings beside its value."""
    return frozenset(name for name in ("prompt", "context", "user", "history") if getattr(inputs, name) is not None)


def _beside(predictor: Predictor, inputs: Sequence[InputToRead], names: frozenset[str]) -> dict[str, list[Any]]:
    """Prompts, contexts, users and histories, one an input; those that no input brings are left out."""
    columns: dict[str, list[Any]] = {name: [getattr(each, name) for each in inputs] for name in sorted(names)}
    return {
        name: [list(texts) for texts in column] if name == "history" else column for name, column in columns.items()
    }


@lru_cache(maxsize=64)
def schema_of(text: str) -> Schema:
    """Schema of its JSON text: the name of a shipped one, or its content. Raises InputError for any other name.

    A name that a client sends is never a path.
    """
    source = json.loads(text)
    if isinstance(source, str) and source not in (names := shipped_schemas()):
        raise InputError(f"schema {source!r}: shipped schemas are {', '.join(names)}; or give its content")
    return read_schema(source)


def texts_of(row: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Texts and scores of one input as plain data, the best first."""
    return [{"text": candidate.text, "score": candidate.score} for candidate in row]
