"""Tables as people have them: separators, encodings, names, quotes, lists; a row that is none is named by its line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from mmprefix.data.inspect import inspect
from mmprefix.data.manifest import read_manifest
from mmprefix.data.manifest_file import RowError, manifest_rows

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
ROWS = [{"id": "1", "image": "0.png", "caption": "a dog, wet"}, {"id": "2", "image": "1.png", "caption": "zwei Kühe"}]


def rows(file: Path) -> dict[int, Any]:
    return {line: str(row) if isinstance(row, RowError) else row for line, row in manifest_rows(file)}


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["m.csv", "m.CSV", "m.tsv", "m.Tsv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-sig"])
def test_any_separator_suffix_and_encoding(separator: str, name: str, encoding: str, tmp_path: Path) -> None:
    file = tmp_path / name
    mark = "\ufeff" if encoding == "utf-16-le-sig" else ""
    with file.open("w", encoding=encoding.removesuffix("-sig") if mark else encoding, newline="") as stream:
        stream.write(mark)
        writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(ROWS)
    assert rows(file) == {2: ROWS[0], 3: ROWS[1]}


def test_names_as_people_write_them(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text("ID, Image ,Caption , Photographer\n1, 0.png, a dog ,Ann\n\n2,1.png,a cat,Bo\n")
    assert rows(file) == {
        2: {"id": "1", "image": "0.png", "caption": "a dog ", "Photographer": "Ann"},
        4: {"id": "2", "image": "1.png", "caption": "a cat", "Photographer": "Bo"},
    }


def test_two_caption_columns_and_lists(tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("image,caption,caption\n0.png,a dog,one dog\n1.png,a cat,\n")
    assert rows(tmp_path / "two.csv") == {
        2: {"image": "0.png", "captions": ["a dog", "one dog"]},
        3: {"image": "1.png", "captions": ["a cat"]},
    }
    lists = [["a dog", "it's one"], ['a "big" dog'], []]
    for dump in (str, json.dumps):  # as pandas writes a list, and as JSON does
        with (tmp_path / "lists.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["image", "captions"], *(["0.png", dump(texts)] for texts in lists)])
        assert [row["captions"] for row in rows(tmp_path / "lists.csv").values()] == lists
    (tmp_path / "odd.csv").write_text("image,captions\n0.png,[a dog]\n")
    assert rows(tmp_path / "odd.csv")[2]["captions"] == ["[a dog]"]


def test_a_quote_that_never_ends_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    good = '1,0.png,"a dog\non two lines"\n'
    file.write_text(f'id,image,caption\n{good}2,1.png,"a cat\n3,2.png,a cow\n4,3.png,a pig\n')
    assert rows(file) == {
        2: {"id": "1", "image": "0.png", "caption": "a dog\non two lines"},
        4: "a quote opens here and never ends: 3 lines would be one row",
    }


def test_a_long_cell_is_a_cell(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text(f"id,image,caption\n1,0.png,{'x' * 200_000}\n2,1.png,a cat\n")
    assert len(rows(file)[2]["caption"]) == 200_000
    assert rows(file)[3]["caption"] == "a cat"


@pytest.mark.parametrize(
    "text",
    [
        '{"id": "1", "image": "0.png", "captions": ["a \\ud83d dog"]}',
        '{"id": "1", "image": "\\ud800.png", "caption": "x"}',
        "[" * 100_000,
        '{"x": ' * 100_000,
        '{"id": ' + "9" * 5000 + "}",
    ],
    ids=["half a character", "half a name", "nested list", "nested object", "number"],
)
def test_an_odd_row_does_not_end_the_others(text: str, tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text(f'{{"id": "0"}}\n{text}\n{{"id": "2", "caption": "\\ud83d\\udc15"}}\n')
    read = rows(file)
    assert read[1] == {"id": "0"}
    assert isinstance(read[2], str)
    assert read[3] == {"id": "2", "caption": "\N{DOG}"}


@pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not there")
@pytest.mark.parametrize("folder", ["11-csv-open-quote", "13-csv-python-list", "14-csv-names", "15-lone-surrogate"])
def test_tables_that_failed(folder: str) -> None:
    faults = {"11-csv-open-quote": 1, "15-lone-surrogate": 1}
    for file in sorted((CASES / folder).glob("*.[cCj]*")):
        examples, unread = read_manifest(str(file))
        assert len(unread) >= faults.get(folder, 0), file
        if folder in ("13-csv-python-list", "14-csv-names"):
            assert not unread
            assert examples[0].captions == (("a dog", "a cat") if folder.startswith("13") else ("a dog",))


@pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not there")
def test_rows_that_ended_the_check() -> None:
    for file in sorted((CASES / "f09-rows-that-stop-check-data").iterdir()):
        if file.suffix in (".jsonl", ".csv"):
            examples, unread = read_manifest(str(file))
            result = inspect(examples, workers=2)
            assert len(unread) + len(result.faults) + len(result.examples) > 0, file
