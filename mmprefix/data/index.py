"""Manifests → the rows that a model can be trained or tested on, how long each is, and the faults of all others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmprefix.data.columns import ColumnMapping
from mmprefix.data.inspect import inspect
from mmprefix.data.manifest import Example, InputRef, RowFault, read_manifest
from mmprefix.data.samplers import RowKey
from mmprefix.errors import InputError

log = logging.getLogger(__name__)

TokenCounter = Callable[[list[str]], list[int]]  # how many tokens each of some texts has

_STEPS_A_SECOND = 2.0  # sounds that differ by less than half a second count as equally long; then captions decide


@dataclass
class DatasetIndex:
    """Examples, what the order of batches needs to know of each, and the faults of the rows that are not among them."""

    examples: list[Example] = field(default_factory=list)
    order: list[RowKey] = field(default_factory=list)
    faults: list[RowFault] = field(default_factory=list)


def build_index(
    files: Iterable[tuple[str, str | None]],
    branches: Mapping[str, str],
    where: Mapping[str, Any] | None = None,
    targets: bool = True,
    max_captions: int | None = None,
    fields: ColumnMapping | None = None,
    reads_text: bool = False,
    count: TokenCounter | None = None,
) -> DatasetIndex:
    """The rows of ``files`` (each with the split its rows must have, or None) that feed one of ``branches``.

    ``fields`` says where contexts and targets stand; with ``reads_text`` a context feeds the model too. With
    ``targets`` a row without caption is a fault. ``count`` tells how many tokens texts have; without it letters count.
    The header of every file is read: it tells how long a sound is, and that the file can be opened. Raises InputError
    for a manifest that feeds no branch.
    """
    examples: list[Example] = []
    faults: list[RowFault] = []
    for file, split in files:
        found, bad = read_manifest(file, split, where)
        if fields is not None:
            found, unlike = fields.apply(found, needed=targets)
            bad = [*bad, *unlike]
        texts = (fields or ColumnMapping()).context if reads_text else ()
        examples += _feeding(branches, found, file, bool(bad), texts)
        faults += bad
    if targets:
        faults += [example.fault("no caption") for example in examples if not example.captions]
        examples = [example for example in examples if example.captions]
    result = inspect(examples, branches, deep=False)
    seconds = {pair: found.seconds or 0.0 for pair, found in result.found.items()}
    size = len if count is None else _sizes(result.examples, count).__getitem__
    order = [_row(example, seconds, max_captions, size) for example in result.examples]
    return DatasetIndex(
        result.examples, order, sorted([*faults, *result.faults], key=lambda fault: (fault.file, fault.line))
    )


def _feeding(
    branches: Collection[str], examples: list[Example], file: str, bad: bool, texts: Sequence[str]
) -> list[Example]:
    """The examples that the model can read: by a branch, or by a context where that is looked for in ``texts``."""
    kept = [row for row in examples if any(name in branches for name in row.inputs) or (texts and row.context)]
    have, silent = ", ".join([*branches, *texts]), not any(row.context for row in examples)
    if examples and not kept and not bad:
        columns = ", ".join(sorted({name for row in examples for name in row.inputs}))
        what = f"its columns ({columns})" if columns else "its rows of text alone"
        lacking = f", and no row has a text in {' or '.join(texts)}" if texts else ""
        fed = f"none of the model's branches ({', '.join(branches)})" if branches else "no branch, for there is none"
        raise InputError(f"{file}: {what} feed {fed}{lacking}")
    if kept and silent and texts:
        log.warning("%s: no row has a text in %s, which this model reads", file, " or ".join(texts))
    if len(kept) < len(examples):
        log.info("%s: %d rows have nothing for %s", file, len(examples) - len(kept), have)
    return kept


def _sizes(examples: Sequence[Example], count: TokenCounter) -> dict[str, int]:
    texts = list({text for row in examples for text in (row.context, *row.captions)})
    return dict(zip(texts, count(texts), strict=True))


def _row(
    example: Example, seconds: Mapping[tuple[str, InputRef], float], most: int | None, size: Callable[[str], int]
) -> RowKey:
    inputs = [pair for pair in example.inputs.items() if pair in seconds]
    sound = round(_STEPS_A_SECOND * max((seconds[pair] for pair in inputs), default=0.0))
    count = len(example.captions)
    captions = min(count, most or count)
    # the captions of an input stand in one row: what counts is the length of all that are drawn
    text = size(example.context) + sum(map(size, example.captions)) * captions // max(1, count)
    return RowKey(frozenset(name for name, _ in inputs), (sound, captions, text))
