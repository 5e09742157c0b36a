"""Manifests: fields, splits, tables, and every kind of fault with the line that is reported."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mmprefix.data.manifest import InputRef, RowFault, listing, read_manifest, repeated_inputs
from mmprefix.data.manifest_file import splits
from mmprefix.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "a.wav"):
        (tmp_path / name).write_bytes(b"not looked at")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as handle:
        handle.writestr("in/c.png", b"not looked at")
    return tmp_path


def write(folder: Path, *rows: Any, name: str = "manifest.jsonl") -> Path:
    file = folder / name
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def test_a_full_row(folder: Path) -> None:
    row = {
        "id": "x",
        "image": "a.jpg",
        "audio": "a.wav",
        "captions": [" one ", "two"],
        "prompt": "Say:",
        "context": "likes dogs",
        "user": "u1",
        "label": 3,
        "split": "train",
        "start": 1,
        "end": 2.5,
        "fold": 7,
    }
    (example,), faults = read_manifest(write(folder, row))
    assert faults == []
    assert example.inputs == {
        "image": InputRef(str(folder / "a.jpg"), 1.0, 2.5),
        "audio": InputRef(str(folder / "a.wav"), 1.0, 2.5),
    }
    assert example.captions == ("one", "two")
    assert (example.prompt, example.context, example.user, example.label) == ("Say:", "likes dogs", "u1", "3")
    assert (example.split, example.extra, example.line) == ("train", {"fold": 7}, 1)


def test_optional_fields(folder: Path) -> None:
    rows = [
        {"image": "a.jpg", "target": "t"},
        {"image": "z.zip::in/c.png", "captions": []},
        {"id": 5, "audio": "a.wav"},
    ]
    examples, faults = read_manifest(write(folder, rows[0], "", rows[1], rows[2]))
    assert faults == []
    assert [example.id for example in examples] == ["1", "3", "5"]  # without an id a row is called by its line
    assert [example.captions for example in examples] == [("t",), (), ()]
    assert examples[0].prompt is None


FAULTS = [
    ("{broken", "not JSON"),
    ("[1, 2]", "expected a JSON object, found a list"),
    ({"id": ["x"], "image": "a.jpg"}, "id must be a text, found a list"),
    ({"id": "", "image": "a.jpg"}, "id must be a text"),
    ({"id": "first", "image": "a.jpg"}, "id 'first' is already used in line 1"),
    ({"captions": ["x"]}, "no input: one of image, audio, video, signals must name a file, or a context or transcript"),
    ({"context": "", "transcript": ""}, "no input"),
    ({"context": 4}, "context must be a text, found a number"),
    ({"context": ["a", 4]}, "context must be a text or a list of texts, found a number (4) in it"),
    ({"signals": []}, "signals must be finite numbers, found none"),
    ({"signals": [1, "2"]}, 'signals must be finite numbers, found a text ("2")'),
    ({"signals": [1, True]}, "signals must be finite numbers, found a truth value (true)"),
    ('{"signals": [1, NaN]}', "signals must be finite numbers, found a number (NaN)"),
    ({"signals": 3}, "signals must be a text, found a number (3)"),
    ({"signals": [1, 2], "audio": "none.wav"}, "audio: "),
    ({"image": 3}, "image must be a text, found a number"),
    ({"image": ""}, "image: the name of the file is empty"),
    ({"image": "none.jpg"}, "none.jpg: no such file"),
    ({"image": "z.zip::none.png"}, "z.zip: the archive has no member 'none.png'"),
    ({"image": "a.jpg", "captions": "text"}, "captions must be a list of texts, found a text"),
    ({"image": "a.jpg", "captions": ["x", ""]}, "captions: caption 2 is empty"),
    ({"image": "a.jpg", "captions": ["x", 4]}, "captions: caption 2 must be a text, found a number"),
    ({"image": "a.jpg", "target": "  "}, "target: caption 1 is empty"),
    ({"image": "a.jpg", "target": "x", "captions": ["y"]}, "captions and target are both given"),
    ({"image": "a.jpg", "prompt": 4}, "prompt must be a text, found a number"),
    ({"image": "a.jpg", "label": {"a": 1}}, "label must be a text or a number, found an object"),
    ({"audio": "a.wav", "start": "0"}, "start must be a number of seconds"),
    ({"audio": "a.wav", "start": -1}, "start must be a number of seconds"),
    ({"audio": "a.wav", "end": True}, "end must be a number of seconds"),
    ({"audio": "a.wav", "start": 2, "end": 1}, "the end must come after the start"),
]


@pytest.mark.parametrize(("row", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_every_fault_has_its_line(folder: Path, row: Any, message: str) -> None:
    file = write(folder, {"id": "first", "image": "a.jpg"}, row, {"id": "last", "image": "b.jpg"})
    examples, faults = read_manifest(file)
    assert [example.id for example in examples] == ["first", "last"]
    (fault,) = faults
    assert (fault.file, fault.line) == (str(file), 2)
    assert message in fault.message
    assert str(fault).startswith(f"{file}:2: ")


def test_empty_and_unreadable_manifests(folder: Path) -> None:
    assert read_manifest(write(folder, "", name="empty.jsonl"))[1][0].message == "the manifest is empty"
    assert read_manifest(write(folder, name="empty.csv"))[1][0].message == "the manifest is empty"
    assert read_manifest(write(folder, "id,image", name="head.csv"))[1][0].message == "the manifest is empty"
    with pytest.raises(InputError, match=r"none\.jsonl.*no such file"):
        read_manifest(folder / "none.jsonl")
    (folder / "latin.jsonl").write_bytes(b'{"id": "caf\xe9"}')
    with pytest.raises(InputError, match=r"latin\.jsonl.*utf-8"):
        read_manifest(folder / "latin.jsonl")


def test_splits_and_conditions(folder: Path) -> None:
    rows = [
        {"id": "a", "image": "a.jpg", "split": "train", "fold": 1, "good": True},
        {"id": "b", "image": "b.jpg", "split": "train", "fold": 2, "good": False},
        {"id": "c", "image": "none.jpg", "split": "val", "fold": 1},
    ]
    file = write(folder, *rows)

    def names(split: str | None = None, where: dict[str, Any] | None = None) -> list[str]:
        return [example.id for example in read_manifest(file, split, where)[0]]

    assert splits(file) == {"train", "val"}
    assert names() == ["a", "b"]
    assert names("train") == ["a", "b"]
    assert names("train", {"fold": "2"}) == names("train", {"fold": 2}) == ["b"]
    assert names(where={"good": "true"}) == names(where={"good": True}) == ["a"]
    assert read_manifest(file, "train")[1] == []  # a bad row of another split is not this one's fault
    assert [fault.line for fault in read_manifest(file, "val")[1]] == [3]
    assert "no row has split = test and fold = 1" in str(read_manifest(file, "test", {"fold": 1})[1][0])


def test_csv_reads_like_json(folder: Path) -> None:
    table = [
        "id,image,audio,captions,start,end,label,speaker",
        'x,a.jpg,,"[""one"", ""two, too""]",,,7,anna',
        'y,,a.wav,"a single',
        'caption",0.5,2,,',
        "z,none.jpg,,,,,,",
        "w,a.jpg,,,,,,,too many",
    ]
    examples, faults = read_manifest(write(folder, *table, name="m.csv"))
    assert [(example.id, example.captions, example.line) for example in examples] == [
        ("x", ("one", "two, too"), 2),
        ("y", ("a single\ncaption",), 3),
    ]
    assert examples[0].label == "7"
    assert examples[0].extra == {"speaker": "anna"}
    assert examples[1].inputs == {"audio": InputRef(str(folder / "a.wav"), 0.5, 2.0)}
    assert [(fault.line, fault.message[:8]) for fault in faults] == [(5, "image: /"), (6, "8 names ")]
    tabs = write(folder, "id\timage\tcaption", "x\ta.jpg\thello, you", name="m.tsv")
    assert read_manifest(tabs)[0][0].captions == ("hello, you",)


def test_rows_of_text_and_of_numbers(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"context": "on", "label": "x"},
        {"transcript": "off", "signals": None},
        {"context": ["on", "of"], "signals": [1, -2.5]},
        {"audio": "a.wav", "signals": [0.5], "start": 1},
    ]
    file = write(folder, *rows)
    examples, faults = read_manifest(file)
    assert faults == []
    assert [(row.context, row.contexts) for row in examples] == [("on", ()), ("", ()), ("on", ("of",)), ("", ())]
    assert examples[1].extra == {"transcript": "off"}
    assert [dict(row.inputs) for row in examples[:3]] == [{}, {}, {"signals": InputRef("", numbers=(1.0, -2.5))}]
    assert examples[3].inputs == {
        "audio": InputRef(str(folder / "a.wav"), 1.0, None),
        "signals": InputRef("", numbers=(0.5,)),
    }
    assert [item.source for item in examples[3].inputs.values()] == [str(folder / "a.wav"), (0.5,)]
    assert [row.sources for row in examples] == [
        [f"{file}:1"],
        [f"{file}:2"],
        [f"{file}:3"],
        [str(folder / "a.wav"), f"{file}:4"],
    ]


def test_numbers_in_a_table(folder: Path) -> None:
    (folder / "numbers.json").write_text("[1, 2]")
    table = ["id,signals,transcript", 'a,"[1, 2.5]",', "b,numbers.json,", "c,,on", 'd,"[1, 2",', 'e,"[1, x]",', "f,,"]
    examples, faults = read_manifest(write(folder, *table, name="m.csv"))
    assert [(row.id, dict(row.inputs)) for row in examples] == [
        ("a", {"signals": InputRef("", numbers=(1.0, 2.5))}),
        ("b", {"signals": InputRef(str(folder / "numbers.json"))}),
        ("c", {}),
    ]
    assert [(fault.line, fault.message.split(":")[0]) for fault in faults] == [
        (5, "signals"), (6, "signals"), (7, "no input"),
    ]  # fmt: skip


def test_a_long_list_of_faults_ends_with_a_count() -> None:
    words = [chr(ord("a") + number) for number in range(25)]
    lines = listing([RowFault("m.jsonl", number, f"bad {word}") for number, word in enumerate(words, 1)]).splitlines()
    assert len(lines) == 21
    assert lines[0] == "m.jsonl:1: bad a"
    assert lines[-1] == "... and 5 more"
    assert listing([RowFault("m", 1, "bad")]) == "m:1: bad"


def test_equal_faults_are_one_line_with_a_count_and_the_first_file(folder: Path) -> None:
    rows: list[Any] = [{"image": f"photo {number}.jpg", "caption": "x"} for number in range(350)]
    rows[100] = {"image": "a.jpg", "caption": 4}
    rows[200:203] = [{"image": "a.jpg", "caption": "x", "start": "0"}] * 3  # few are named one by one
    file = write(folder, *rows)
    lines = listing(read_manifest(file)[1]).splitlines()
    first = folder / "photo 0.jpg"
    assert lines[0] == f"{file}:1: image: {first}: no such file (346 rows like this, to line 350)"
    assert [line.removeprefix(f"{file}:").split(":")[0] for line in lines[1:]] == ["101", "201", "202", "203"]


@pytest.mark.parametrize("place", ["photos", "deep/er/photos", "../beside", "../beside/photos"])
def test_the_folder_of_missing_files_is_named(place: str, folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "tables" / "m.csv"
    manifest.parent.mkdir()
    media = manifest.parent / place
    media.mkdir(parents=True)
    for number in range(9):
        (media / f"{number}.jpg").write_bytes(b"")
    names = [f"{number}.jpg" for number in range(10)]
    write(manifest.parent, "image,caption", *(f"{name},x" for name in names), name="m.csv")
    examples, faults = read_manifest(manifest)
    assert examples == []
    *_, hint = listing(faults).splitlines()
    assert hint.startswith("9 of 10 files exist under ")
    root = hint.rpartition("--media-root ")[2]
    assert Path(root).resolve() == media.resolve()
    examples, faults = read_manifest(manifest, media_root=root)
    assert [Path(example.inputs["image"].path).resolve() for example in examples] == [
        (media / name).resolve() for name in names[:9]
    ]
    assert [fault.line for fault in faults] == [11]
    assert "--media-root" not in listing(read_manifest(write(folder, {"image": "nowhere.jpg"}))[1])


def test_missing_files_are_hinted_at_though_one_has_a_name_of_no_disk(folder: Path) -> None:
    (folder / "photos").mkdir()
    names = [f"{number}.jpg" for number in range(8)]
    for name in names:
        (folder / "photos" / name).write_bytes(b"")
    rows = [{"image": name, "caption": "x"} for name in (*names, "z" * 5000, "z\0.jpg", "z\0.zip::z.jpg")]
    examples, faults = read_manifest(write(folder, *rows))
    assert (examples, len(faults)) == ([], 11)
    assert listing(faults).endswith(f"8 of 10 files exist under {folder / 'photos'}: --media-root {folder / 'photos'}")


CAPTION_ROWS = [
    ("a.jpg", "one"), ("a.jpg", "two"), ("b.jpg", "three"), ("a.jpg", "four"), ("b.jpg", "five"), ("b.jpg", "three"),
]  # fmt: skip


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("column", ["caption", "target"])
def test_one_row_a_caption(column: str, ids: bool, suffix: str, folder: Path) -> None:
    rows = [{**({"id": name} if ids else {}), "image": name, column: text} for name, text in CAPTION_ROWS]
    lines = rows if suffix == "jsonl" else [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    examples, faults = read_manifest(write(folder, *lines, name=f"m.{suffix}"))
    assert faults == []
    first = 1 + (suffix == "csv")
    assert [(row.id, row.captions, row.line, row.rows) for row in examples] == [
        ("a.jpg" if ids else str(first), ("one", "two", "four"), first, 3),
        ("b.jpg" if ids else str(first + 2), ("three", "five", "three"), first + 2, 3),
    ]
    assert examples[0].lines == (first, first + 1, first + 3)
    assert repeated_inputs(examples) is None


def test_rows_that_differ_in_more_than_the_caption_stay_apart(folder: Path) -> None:
    rows = [
        {"audio": "a.wav", "caption": "one", "start": 0, "end": 1},
        {"audio": "a.wav", "caption": "two", "start": 1, "end": 2},
        {"audio": "a.wav", "caption": "three", "user": "u"},
        {"audio": "a.wav", "caption": "four", "prompt": "say:"},
        {"audio": "a.wav", "caption": "five", "context": "x"},
        {"audio": "a.wav", "caption": "six", "context": "x", "transcript": "on"},
        {"audio": "a.wav", "caption": "seven", "split": "val"},
        {"audio": "a.wav", "target": "eight", "label": "x"},
        {"audio": "a.wav", "target": "nine", "label": "y"},
        {"audio": "a.wav"},
        {"audio": "a.wav"},
    ]
    file = write(folder, *rows)
    examples, faults = read_manifest(file, apart=["transcript"])
    assert (len(examples), faults) == (11, [])
    assert repeated_inputs(examples) is None
    assert len(read_manifest(file)[0]) == 10  # no one reads the transcript
    captions = [{"audio": "a.wav", "caption": "x"}] * 3
    assert len(read_manifest(write(folder, *captions), apart=None)[0]) == 3


def test_one_id_for_two_inputs_says_in_what_they_differ(folder: Path) -> None:
    base = {"id": "x", "audio": "a.wav", "caption": "one"}
    others = [
        ({"image": "a.jpg"}, "file"),
        ({"start": 1}, "start or end"),
        ({"split": "val"}, "split"),
        ({"prompt": "say:", "user": "u"}, "prompt"),
    ]
    for more, word in others:
        _, (fault,) = read_manifest(write(folder, base, {**base, **more}))
        assert (fault.line, fault.message) == (2, f"id 'x' is already used in line 1, for another {word}")


def test_ids_that_stand_twice_cost_a_time_that_grows_with_the_rows(folder: Path) -> None:
    def steps(ids: int) -> int:
        """Lines of Python that are run while a manifest is read in which ``ids`` ids stand twice."""
        rows = [{"id": number % ids, "signals": [number // ids], "caption": "x"} for number in range(2 * ids)]
        file, count = write(folder, *rows), 0

        def count_line(frame: object, event: str, value: object) -> Any:
            nonlocal count
            count += event == "line"
            return count_line

        before = sys.gettrace()
        sys.settrace(count_line)
        try:
            examples, faults = read_manifest(file)
        finally:
            sys.settrace(before)
        assert (len(examples), len(faults)) == (ids, ids)
        return count

    assert steps(800) < 5 * steps(200)


def test_other_ids_for_the_same_input_are_named(folder: Path) -> None:
    rows = [{"id": f"c{number}", "image": name, "caption": text} for number, (name, text) in enumerate(CAPTION_ROWS)]
    examples, faults = read_manifest(write(folder, *rows))
    assert (len(examples), faults) == (6, [])
    note = repeated_inputs(examples)
    assert note is not None
    assert ":2: 4 rows name an input again under another id: 'c1' is 'c0' of line 1" in note


def test_a_bad_row_of_an_input_leaves_the_others(folder: Path) -> None:
    rows = [("a.jpg", ""), ("a.jpg", "two"), ("none.jpg", "x"), ("a.jpg", 4), ("none.jpg", "y"), ("a.jpg", "five")]
    file = write(folder, *({"id": name, "image": name, "captions": [text]} for name, text in rows))
    (example,), faults = read_manifest(file)
    assert (example.captions, example.lines) == (("two", "five"), (2, 6))
    assert [fault.line for fault in faults] == [1, 3, 4, 5]


def test_grouping_keeps_order_whatever_the_order_of_rows(folder: Path) -> None:
    names = [f"{number}.jpg" for number in range(40)]
    for name in names:
        (folder / name).write_bytes(b"")
    random = Random(0)
    pairs = [(name, f"{name} {number}") for name in names for number in range(5)]
    random.shuffle(pairs)
    expected: dict[str, list[str]] = {}
    for name, text in pairs:
        expected.setdefault(name, []).append(text)
    examples, _ = read_manifest(write(folder, *({"image": name, "caption": text} for name, text in pairs)))
    assert [(Path(row.inputs["image"].path).name, list(row.captions)) for row in examples] == list(expected.items())
    assert [row.line for row in examples] == sorted(row.line for row in examples)


@pytest.mark.parametrize(
    ("name", "rows", "uncaptioned"), [("esc10", 320, 0), ("nlvr", 2805, 1243), ("fsdd", 2000, 2000)]
)
def test_real_manifests(name: str, rows: int, uncaptioned: int) -> None:
    file = SHARED / name / "manifest.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not here")
    examples, faults = read_manifest(file)
    assert (len(examples), faults) == (rows, [])
    assert sum(not example.captions for example in examples) == uncaptioned
