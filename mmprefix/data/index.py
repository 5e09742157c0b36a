"""Manifests → the rows that feed a model, a sort key for each, and the faults of all other rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmprefix.data.columns import ColumnMapping
from mmprefix.data.histories import (
    USER_BRANCH,
    add_histories,
    add_strangers,
    earlier_texts,
    longest_context,
    read_histories,
)
from mmprefix.data.inspect import inspect
from mmprefix.data.long_captions import LongCaptions, fit_captions
from mmprefix.data.manifest import Example, InputRef, RowFault, read_manifest, repeated_inputs
from mmprefix.data.model_inputs import ModelInputs, TokenCounter
from mmprefix.data.samplers import RowKey
from mmprefix.errors import InputError

log = logging.getLogger(__name__)

_STEPS_A_SECOND = 2.0  # sounds that differ by less than half a second count as equally long; then captions decide


@dataclass
class DatasetIndex:
    """Rows of one split: examples, the sort key of each, and the faults of the rows that are not among them."""

    examples: list[Example] = field(default_factory=list[Example])
    keys: list[RowKey] = field(default_factory=list[RowKey])
    faults: list[RowFault] = field(default_factory=list[RowFault])


@dataclass(frozen=True)
class IndexOptions:
    """Rows that a split takes.

    Args:
        where: keep the rows whose fields have these values.
        columns: where context and target stand.
        targets: a row without target is a fault.
        max_captions: captions drawn from those of a row, which its length in tokens counts; None: all.
        count_tokens: take lengths in tokens of the decoder, not in letters.
        media_root: folder of the inputs' files; None: that of each manifest.
        grouped: rows with one caption each that name the same input are one row.
        long_captions: "error", "skip" or "cut": a caption longer than the decoder's positions is a fault of its row,
            left out, or cut.
        histories: file with earlier texts of the rows' users; None: a row's history is what its manifest says.
        prompt: the prompt of rows that have none, which takes positions too.
    """

    where: Mapping[str, Any] | None = None
    columns: ColumnMapping = field(default_factory=ColumnMapping)
    targets: bool = True
    max_captions: int | None = None
    count_tokens: bool = False
    media_root: str | None = None
    grouped: bool = True
    long_captions: LongCaptions = "error"
    histories: str | None = None
    prompt: str = ""

    @property
    def apart(self) -> list[str] | None:
        """Columns beside the known ones in which rows of one input agree; None: no rows are one."""
        names = (*self.columns.context, *([] if self.columns.target is None else [self.columns.target]))
        return [part for name in names for part in name.split("+")] if self.grouped else None


def build_index(
    files: Iterable[tuple[str, str | None]],
    inputs: ModelInputs,
    options: IndexOptions = IndexOptions(),
) -> DatasetIndex:
    """Rows of ``files`` that feed one of the model's ``inputs``.

    Each file comes with the value of ``split`` that its rows must have (None: any). The header of every input file is
    read: it tells how long a sound is, and that the file can be opened. Raises InputError for a manifest that feeds no
    branch.
    """
    branches, words, wording = inputs.branches, inputs.text_columns, inputs.wording
    histories = None if options.histories is None else read_histories(options.histories)
    examples: list[Example] = []
    faults: list[RowFault] = []
    for file, split in files:
        rows, bad = read_manifest(
            file,
            split,
            options.where,
            media_root=options.media_root,
            apart=options.apart,
            texts=words,
            captions_alone=inputs.captions_alone,
        )
        if note := repeated_inputs(rows):
            log.warning(note)
        rows, without_target = options.columns.apply(rows, needed=options.targets)
        bad = [*bad, *without_target]
        texts = options.columns.context if inputs.reads_text else ()
        rows = rows if histories is None else add_histories(rows, histories)
        fed = inputs.captions_alone
        rows = rows if fed else _feeding(branches, rows, file, bad=bool(bad), texts=texts)
        examples += add_strangers(rows) if USER_BRANCH in words else rows
        faults += bad
    if options.targets:
        faults += [example.fault("no caption") for example in examples if not example.captions]
        examples = [example for example in examples if example.captions]
    result = inspect(examples, branches, deep=False)
    seconds = {pair: info.seconds or 0.0 for pair, info in result.files.items()}
    examples = result.examples
    room = inputs.text_room() if options.targets and inputs.text_room is not None else None
    if room is not None:
        own = {"prompt": options.prompt, "mode": options.long_captions, "wording": wording}
        examples, long = fit_captions(examples, seconds, room, **own)
        faults += long
    keys = _row_keys(examples, seconds, inputs, options)
    ordered = sorted([*faults, *result.faults], key=lambda fault: (fault.file, fault.line))
    return DatasetIndex(examples, keys, ordered)


def _feeding(
    branches: Collection[str], examples: list[Example], file: str, *, bad: bool, texts: Sequence[str]
) -> list[Example]:
    """Examples that the model can read: by a branch, or by a context in one of the columns ``texts``."""
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


def _row_keys(
    examples: Sequence[Example],
    seconds: Mapping[tuple[str, InputRef], float],
    inputs: ModelInputs,
    options: IndexOptions,
) -> list[RowKey]:
    """Sort key of each row, whose prompt may hold the longest earlier texts of its user."""
    count, wording = inputs.count_tokens if options.count_tokens else None, inputs.wording
    contexts = [longest_context(example, example.context, wording) for example in examples]
    size = len if count is None else _token_counts(examples, contexts, count).__getitem__
    if wording is not None and examples and not any(map(earlier_texts, examples)):
        log.warning("no row has earlier texts of its user, which this model reads: give data.histories, or a column")
    most = options.max_captions
    return [_row_key(row, seconds, most, size, context=own) for row, own in zip(examples, contexts, strict=True)]


def _token_counts(examples: Sequence[Example], contexts: Sequence[str], count: TokenCounter) -> dict[str, int]:
    texts = list({*contexts, *(text for row in examples for text in row.captions)})
    return dict(zip(texts, count(texts), strict=True))


def _row_key(
    example: Example,
    seconds: Mapping[tuple[str, InputRef], float],
    most: int | None,
    size: Callable[[str], int],
    *,
    context: str,
) -> RowKey:
    inputs = [pair for pair in example.inputs.items() if pair in seconds]
    longest = max((seconds[pair] for pair in inputs), default=0.0)
    count = len(example.captions)
    captions = min(count, most or count)
    # the captions of an input stand in one row: what counts is the length of all that are drawn
    tokens = size(context) + sum(map(size, example.captions)) * captions // max(1, count)
    steps = round(_STEPS_A_SECOND * longest)
    return RowKey(frozenset(name for name, _ in inputs), steps / _STEPS_A_SECOND, captions, tokens)
