"""Files of rows: lines of each format, names that are read back, runs that are gone on with, two writers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mmprefix import InputError
from mmprefix.cli.inference.row_file import FORMATS, RowFile, RowWriter, StandardOutput, open_row_file, row_name

COLUMNS = ("file", "caption", "score")
NAMES = ("a.png", 'quote".png', "comma,.png", "line\nbreak.png", "tab\t.png", "猫.png", "byte\udcff.png")
OPTIONS = {"--num-beams": 2, "model": "abc"}


def row(name: str) -> dict[str, object]:
    return {"file": name, "caption": 'two\nlines, "one"', "score": -0.5}


def file_of(path: Path, form: str) -> RowFile:
    return RowFile(path, RowWriter(form, COLUMNS))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_row_is_read_back_from_its_one_line(form: str, name: str) -> None:
    writer = RowWriter(form, COLUMNS)
    line = writer.line(row(name), ["two\nlines"])
    written = line.encode("utf-8", "backslashreplace").decode()
    assert written.endswith("\n")
    assert written.count("\n") == 1
    assert writer.name_in(written[:-1]) == writer.key(name)


def test_a_table_is_read_by_csv_and_objects_by_json() -> None:
    writer = RowWriter("csv", COLUMNS)
    lines = [writer.header, writer.line(row('a,"b".png'), [])]
    assert list(csv.DictReader(lines)) == [
        {"file": 'a,"b".png', "caption": 'two\\nlines, "one"', "score": "-0.5"},
    ]
    assert json.loads(RowWriter("jsonl", ()).line(row("a"), [])) == row("a")
    assert RowWriter("txt", ()).line({"id": 3, "file": "a"}, ["x", "y\tz"]) == "3\tx\ty\\tz\n"
    assert row_name({"id": 3, "file": "a"}) == "3"


@pytest.mark.parametrize(
    ("form", "line"), [("jsonl", "[1]"), ("jsonl", "{"), ("txt", "no tab"), ("csv", "a,b"), ("tsv", "a,b,c")]
)
def test_a_line_that_is_no_row_is_named(form: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    with open_row_file(file_of(path, form), OPTIONS, overwrite=False) as file:
        file.write(row("a"), ["x"])
    number = len(path.read_text().splitlines()) + 1
    path.write_text(f"{path.read_text()}{line}\n")
    message = rf"out:{number}: is no row that this command writes; --overwrite writes the file anew"
    with (
        pytest.raises(InputError, match=message),
        open_row_file(file_of(path, form), OPTIONS, overwrite=False),
    ):
        pass


@pytest.mark.parametrize("form", FORMATS)
def test_a_second_run_writes_what_is_left(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.{form}"
    with open_row_file(file_of(path, form), OPTIONS, overwrite=False) as file:
        for name in ("a", "b", "b"):
            file.write(row(name), ["x"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])  # the last line was cut off by a kill
    with open_row_file(file_of(path, form), OPTIONS, overwrite=False) as file:
        assert file.rows_before == 2
        assert [file.is_done(name) for name in ("a", "b", "b", "c")] == [True, True, False, False]
        file.write(row("b"), ["x"])
    assert path.read_bytes() == whole


def test_rows_of_other_options_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with open_row_file(file_of(path, "jsonl"), OPTIONS, overwrite=False) as file:
        file.write(row("a"), [])
    for options, message in (
        (OPTIONS | {"--num-beams": 3}, "was begun with --num-beams 2, now 3"),
        ({"model": "abc"}, "was begun with --num-beams 2, now left out"),
        (OPTIONS | {"--json": True}, "was begun with --json left out, now given"),
        (OPTIONS | {"model": "abd"}, "was begun with a model of other tensors"),
    ):
        with pytest.raises(InputError, match=message), open_row_file(file_of(path, "jsonl"), options, overwrite=False):
            pass
    with open_row_file(file_of(path, "jsonl"), {}, overwrite=True) as file:
        assert not file.is_done("a")
        file.write(row("c"), [])
    assert json.loads(path.read_text()) == row("c")
    file_of(path, "jsonl").memory.unlink()
    with (
        pytest.raises(InputError, match="is there already, and which options made it is not known"),
        open_row_file(file_of(path, "jsonl"), {}, overwrite=False),
    ):
        pass


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with open_row_file(file_of(path, "jsonl"), OPTIONS, overwrite=False) as file:
        file.write(row("a"), [])
        with pytest.raises(InputError, match="another process is writing it"):
            file_of(path, "jsonl").begin(OPTIONS, overwrite=False)
    assert json.loads(path.read_text()) == row("a")


def test_a_run_without_rows_leaves_no_file(tmp_path: Path) -> None:
    with open_row_file(file_of(tmp_path / "out.csv", "csv"), OPTIONS, overwrite=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_text_of_several_lines_is_printed_in_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of an instruct model's answer would be taken for those of further files."""
    StandardOutput(None).write({"file": "a.png"}, ["A dog.\n\nIt  runs.\r\n", ""])
    assert capsys.readouterr().out == "a.png: A dog. It  runs.\na.png: \n"
