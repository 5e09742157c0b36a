"""Histories of users as inputs: read by user, without what is to be written; faults by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmprefix.data.histories import add_histories, read_histories
from mmprefix.data.index import IndexOptions, build_index
from mmprefix.data.manifest import InputRef
from mmprefix.data.manifest.example import Example
from mmprefix.data.model_inputs import ModelInputs
from mmprefix.errors import InputError
from mmprefix.media.source import Source


def nothing(source: Source, start: float, end: float | None) -> Tensor:
    """Read nothing: rows are indexed, not loaded."""
    return torch.zeros(0)


def example(user: str | None, *captions: str, **inputs: InputRef) -> Example:
    return Example("x", {"image": InputRef("a.png"), **inputs}, captions, user=user)


def test_a_row_reads_its_users_texts_but_not_its_own_captions() -> None:
    histories = {"u": ("one", "two", " three "), "v": ()}
    rows = [example("u", "two", "three"), example("v", "x"), example("w", "x"), example(None, "x"), example("u")]
    texts = [row.inputs.get("history") for row in add_histories(rows, histories)]
    assert [None if ref is None else ref.texts for ref in texts] == [
        ("one",),
        None,
        None,
        None,
        ("one", "two", " three "),
    ]
    own = InputRef("", texts=("mine",))
    assert add_histories([example("u", history=own)], histories)[0].inputs["history"] is own


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"history": ["a"]}', 'expected {"user": a text'),
        ('{"user": "u", "history": "a"}', "must be a list of texts"),
        ('{"user": "u", "history": [1]}', "must be a list of texts"),
        ('{"user": "a", "history": []}', "is there twice"),
        ("{", "users.jsonl:2"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "users.jsonl"
    file.write_text(f'{{"user": "a", "history": ["x", " "]}}\n{line}\n')
    with pytest.raises(InputError, match=r"users\.jsonl:2") as caught:
        read_histories(file)
    assert message in str(caught.value)


def test_texts_are_read_and_empty_ones_left_out(tmp_path: Path) -> None:
    file = tmp_path / "users.jsonl"
    file.write_text('{"user": "é", "history": ["x", " ", "🐕"]}\n{"user": "b"}\n', encoding="utf-8")
    assert read_histories(file) == {"é": ("x", "🐕"), "b": ()}
    file.write_text("")
    with pytest.raises(InputError, match="has no user"):
        read_histories(file)


def test_the_index_of_a_manifest_has_them(tmp_path: Path) -> None:
    (tmp_path / "users.jsonl").write_text(json.dumps({"user": "u", "history": ["one", "two"]}))
    rows = [{"user": "u", "history": ["own"], "captions": ["a"]}, {"user": "u", "context": "c", "captions": ["one"]}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    inputs = ModelInputs(load={"history": nothing}, kinds={"history": "text"})
    index = build_index(
        [(str(tmp_path / "m.jsonl"), None)], inputs, IndexOptions(histories=str(tmp_path / "users.jsonl"))
    )
    assert [row.inputs["history"].texts for row in index.examples] == [("own",), ("two",)]


def test_a_model_that_reads_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.histories users.jsonl: this model has no branch named history"):
        ModelInputs(load={"image": nothing}).require_use((), questions=False, histories="users.jsonl")


def test_a_row_without_user_is_nobodys_where_a_branch_reads_users(tmp_path: Path) -> None:
    """Rows agree with calls; a branch that is left out would give no prefix of a user at all."""
    rows = [{"user": "u", "context": "c", "captions": ["a"]}, {"context": "d", "captions": ["b"]}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    inputs = ModelInputs(load={"user": nothing}, kinds={"user": "text"}, reads_text=True)
    index = build_index([(str(tmp_path / "m.jsonl"), None)], inputs)
    assert [row.inputs["user"].texts for row in index.examples] == [("u",), ("-",)]
    without = build_index([(str(tmp_path / "m.jsonl"), None)], ModelInputs(reads_text=True))
    assert all("user" not in row.inputs for row in without.examples)
