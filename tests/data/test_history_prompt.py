"""Earlier texts in the prompt: which of them training draws, and what is never among them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mmprefix.data.histories import longest_context
from mmprefix.data.model_inputs import ModelInputs
from mmprefix.data.pairs import PairData
from mmprefix.data.samplers import BatchRows
from mmprefix.data.sources import Split
from mmprefix.errors import InputError
from mmprefix.prompt_template import PromptTemplate

WORDING = PromptTemplate(context="{context}\ngoal: ", history="{history}\n--\n", history_texts=2)
OWN = [f"ann wrote {number}" for number in range(6)]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows of ann, whose captions are among her texts, of bo, who has none, and of nobody."""
    ann = [{"context": f"plan {number}", "user": "ann", "captions": [OWN[number]]} for number in range(4)]
    others = [{"context": "plan b", "user": "bo", "captions": ["b"]}, {"context": "plan c", "captions": ["c"]}]
    write(tmp_path, "train.jsonl", [*ann, *others])
    write(tmp_path, "val.jsonl", [{"context": "plan v", "user": "ann", "captions": ["ann wrote v"]}])
    write(tmp_path, "users.jsonl", [{"user": "ann", "history": [*OWN, " "]}, {"user": "bo"}])
    return tmp_path


def contexts(folder: Path, split: Split, epoch: int, **options: Any) -> list[str]:
    """Contexts of all rows of a split in an epoch, in their order."""
    data = PairData(root=str(folder), histories=str(folder / "users.jsonl"), **options)
    data.inputs = ModelInputs(reads_text=True, wording=WORDING)
    data.setup("fit")
    rows = list(range(len(data.rows[split].examples)))
    loaded: Any = data.train_dataloader() if split == "train" else data.val_dataloader()
    return loaded.dataset[BatchRows(epoch, rows)].contexts


def shown(context: str) -> list[str]:
    before, mark, _ = context.partition("\n--\n")
    return before.split("\n") if mark else []


def test_training_draws_texts_anew_and_never_the_row_itself(folder: Path) -> None:
    epochs = [contexts(folder, "train", epoch) for epoch in range(8)]
    for number in range(4):
        drawn = [shown(epoch[number]) for epoch in epochs]
        assert all(len(texts) == 2 and set(texts) <= set(OWN) - {OWN[number]} for texts in drawn)
        assert all(texts == sorted(texts) for texts in drawn)  # in the order in which they were written
        assert len({tuple(texts) for texts in drawn}) > 3
    assert all(epoch[4:] == ["plan b", "plan c"] for epoch in epochs)
    assert contexts(folder, "train", 3) == epochs[3]
    assert contexts(folder, "train", 3, seed=1) != epochs[3]
    assert all(epoch[0].endswith("\n--\nplan 0") for epoch in epochs)


def test_elsewhere_it_shows_the_newest_texts_of_training_alone(folder: Path) -> None:
    for epoch in range(3):
        assert contexts(folder, "val", epoch) == ["ann wrote 4\nann wrote 5\n--\nplan v"]


def test_a_share_of_training_shows_none(folder: Path) -> None:
    assert all(not shown(text) for text in contexts(folder, "train", 0, history_dropout=1.0))
    half = [shown(text) for epoch in range(30) for text in contexts(folder, "train", epoch, history_dropout=0.5)[:4]]
    assert 30 < sum(map(bool, half)) < 90
    assert shown(contexts(folder, "val", 0, history_dropout=1.0)[0])
    with pytest.raises(InputError, match=r"data\.history_dropout 1\.5: give a probability from 0 to 1"):
        PairData(root=str(folder), history_dropout=1.5)


def test_a_rows_own_column_goes_before_the_file(folder: Path) -> None:
    write(folder, "val.jsonl", [{"context": "p", "user": "ann", "history": ["mine\nown"], "captions": ["x"]}])
    assert contexts(folder, "val", 0) == ["mine own\n--\np"]


def test_rows_are_as_long_as_their_longest_texts(folder: Path) -> None:
    data = PairData(root=str(folder), histories=str(folder / "users.jsonl"), max_tokens=1000)
    data.inputs = ModelInputs(
        reads_text=True, wording=WORDING, count_tokens=lambda texts: [len(text) for text in texts]
    )
    data.setup("fit")
    example, key = data.rows["train"].examples[0], data.rows["train"].keys[0]
    longest = longest_context(example, "plan 0", WORDING)
    assert key.tokens == len(longest) + len(OWN[0])
    assert longest_context(example, "plan 0", None) == "plan 0"


def test_a_model_that_reads_texts_and_gets_none_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = PairData(root=str(folder))
    data.inputs = ModelInputs(reads_text=True, wording=WORDING)
    with caplog.at_level(logging.WARNING, "mmprefix"):
        data.setup("fit")
    assert "no row has earlier texts of its user, which this model reads: give data.histories" in caplog.text
    with pytest.raises(InputError, match=r"no branch named history that reads texts, and no model\.wording\.history"):
        ModelInputs(reads_text=True).require_use((), questions=False, histories="users.jsonl")


def test_wordings_that_cannot_be_are_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"context": "{context}", "history": "mine"}, r"wording\.history 'mine': must hold \{history\} once"),
        ({"history": "{history}"}, r"wording\.history: stands within the context; give wording\.context too"),
        ({"history_texts": 0}, r"wording\.history_texts 0: give a number from 1 on"),
    ]
    for options, message in wrong:
        with pytest.raises(InputError, match=message):
            PromptTemplate(**options)
    assert WORDING.with_history([" ", ""], "p") == "p"
    assert PromptTemplate(context="{context}").with_history(["a"], "p") == "p"
    assert WORDING.render_prompt(WORDING.with_history(["a {context}", "🐕"], ""), "") == "a {context}\n🐕\n--\n\ngoal: "
