"""Results of a batch as files: cells that no spreadsheet runs, and names that are no paths and occur once."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mmprefix.demo import previews
from mmprefix.demo.batch import BatchRow, write_csv, write_texts
from mmprefix.demo.writing import Wishes
from mmprefix.errors import InputError


def names_of(files: list[str], folder: Path) -> dict[str, str]:
    """Names in the zip of texts, and what each holds: the file that it is of."""
    write_texts([BatchRow(file, file) for file in files], folder / "texts.zip")
    with zipfile.ZipFile(folder / "texts.zip") as archive:
        assert len(set(archive.namelist())) == len(archive.namelist()) == len(files)
        return {name: archive.read(name).decode().rstrip("\n") for name in archive.namelist()}


@pytest.mark.parametrize(
    "name", ["..\\..\\x.png", "../x.png", "C:x.png", "/etc/x.png", 'a"b<c>|?*.png', "..", ".hidden"]
)
def test_no_name_in_the_zip_is_a_path(name: str, tmp_path: Path) -> None:
    ((written, text),) = names_of([name], tmp_path).items()
    assert text == name
    assert not set(written) & set('/\\:<>"|?*')
    assert written.endswith(".txt")
    with zipfile.ZipFile(tmp_path / "texts.zip") as archive:
        archive.extractall(tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == [written]


def test_texts_of_like_names_keep_apart(tmp_path: Path) -> None:
    files = ["dog.jpg", "dog.wav", "dog.jpg.png", "Cat.png", "cat.gif", "roof.png"]
    names = names_of(files, tmp_path)
    assert len({name.lower() for name in names}) == len(files)  # on a disk without upper and lower case too
    assert names["roof.txt"] == "roof.png"
    assert names["dog.jpg.txt"] == "dog.jpg"
    assert names["dog.wav.txt"] == "dog.wav"


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "＝1+1", "－1"])
def test_no_cell_is_a_formula(cell: str, tmp_path: Path) -> None:
    write_csv([BatchRow(cell, cell, -1.5, cell)], tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as stream:
        _, row = csv.reader(stream)
    assert row == [f"'{cell}", f"'{cell}", "-1.5000", f"'{cell}"]


def test_samples_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(previews, "_MOST_SAMPLES", 3)
    previews._remove_samples()
    made = [Path(previews.sample_file("audio")) for _ in range(5)]
    assert [file.exists() for file in made] == [False, False, True, True, True]
    previews._remove_samples()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field", ["must_hold", "avoid", "start_with"])
def test_a_phrase_is_bounded(field: str) -> None:
    long: dict[str, Any] = {field: "a" * 1001}
    short: dict[str, Any] = {field: "a" * 200}
    with pytest.raises(InputError, match="this page takes at most"):
        Wishes(**long).options()
    assert Wishes(**short).options()
