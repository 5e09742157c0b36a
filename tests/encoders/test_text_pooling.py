"""Pooling of a text's frames against sums written out token by token, and the files that describe it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprefix.encoders.text_pooling import SentenceModules, pooled, sentence_modules
from mmprefix.errors import InputError

LENGTHS = (4, 1, 3)


def token_by_token(rows: Tensor, mode: str) -> Tensor:
    """Summary of the real frames (T D) of one text by the definition of sentence-transformers."""
    total, weights = torch.zeros(rows.shape[1]), 0.0
    for place, row in enumerate(rows, start=1):
        total, weights = total + row * (place if mode == "weightedmean" else 1), weights + place
    return {
        "cls": rows[0],
        "lasttoken": rows[-1],
        "max": torch.stack(list(rows)).max(0).values,
        "mean": total / len(rows),
        "mean_sqrt_len_tokens": total / len(rows) ** 0.5,
        "weightedmean": total / weights,
    }[mode]


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_padding_is_in_no_summary(mode: str) -> None:
    draw = torch.Generator().manual_seed(0)
    frames = torch.randn(3, 4, 5, generator=draw) - 2  # below zero: padding would be the maximum
    mask = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
    expected = torch.stack([token_by_token(frames[i, :length], mode) for i, length in enumerate(LENGTHS)])
    torch.testing.assert_close(pooled(frames * mask[..., None], mask, [mode]), expected)
    both = pooled(frames, mask, ["mean", mode])
    assert both.shape == (3, 10)
    torch.testing.assert_close(both[:, 5:], expected)


def write(folder: Path, **files: Any) -> Path:
    """Write each of ``files`` as JSON to ``folder``; two underscores in a name stand for a folder."""
    for name, value in files.items():
        file = folder / f"{name.replace('__', '/')}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    return folder


def modules(*kinds: str) -> list[dict[str, str]]:
    return [{"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}"} for i, kind in enumerate(kinds)]


def test_a_folder_without_modules_is_pooled_by_the_mean(tmp_path: Path) -> None:
    assert sentence_modules("m", tmp_path) == SentenceModules()


def test_all_files_of_a_folder_are_read(tmp_path: Path) -> None:
    write(
        tmp_path,
        modules=modules("Transformer", "Pooling", "Normalize"),
        sentence_bert_config={"max_seq_length": 128, "do_lower_case": True},
        config_sentence_transformers={"prompts": {"query": "query: "}, "default_prompt_name": "query"},
    )
    pooling = "1_Pooling__config"
    write(tmp_path, **{pooling: {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}})
    file = tmp_path / "1_Pooling" / "config.json"
    expected = SentenceModules(("cls", "mean"), unit=True, limit=128, lower=True, prompt="query: ", settings=file)
    assert sentence_modules("m", tmp_path) == expected
    write(tmp_path, **{pooling: {"pooling_mode": "mean+max"}})  # as newer versions write it
    assert sentence_modules("m", tmp_path).modes == ("mean", "max")


@pytest.mark.parametrize("limit", [0, -1, None, "long"])
def test_a_limit_that_is_no_number_of_tokens_is_the_model_s(limit: Any, tmp_path: Path) -> None:
    assert sentence_modules("m", write(tmp_path, sentence_bert_config={"max_seq_length": limit})).limit is None


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([{"type": "a.Pooling", "path": "../elsewhere"}], "names the folder '../elsewhere', which is not in"),
        ([{"type": "a.Pooling", "path": "/elsewhere"}], "names the folder '/elsewhere', which is not in"),
        ([{"type": "a.Pooling", "path": "1_Pooling"}], "names a Pooling, but there is no"),
        ([{"type": "a.Dense", "path": "2_Dense"}], "names a module Dense, which Text cannot read"),
        ([{"type": "a.Pooling"}], "is no list of modules with type and path"),
        ({"type": "a.Pooling"}, "is no list of modules with type and path"),
    ],
)
def test_what_cannot_be_read_is_one_line(listed: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        sentence_modules("m", write(tmp_path, modules=listed))
    assert "\n" not in str(error.value)
