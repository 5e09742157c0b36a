"""``mmprefix check-data`` on manifests with every kind of bad row, and on real data."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from mmprefix.cli import check_data as check
from mmprefix.cli.main import main
from mmprefix.data import inspect
from mmprefix.data.manifest import read_manifest
from mmprefix.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
RATE = 8000


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    soundfile.write(tmp_path / "one.wav", random.uniform(-0.1, 0.1, RATE), RATE)
    soundfile.write(tmp_path / "three.ogg", random.uniform(-0.1, 0.1, 3 * RATE), RATE)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "late.flac", random.uniform(-0.1, 0.1, RATE), RATE)
    for name, source in (("cut.ogg", "three.ogg"), ("cut.flac", "late.flac")):
        data = (tmp_path / source).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:900])
    (tmp_path / "text.jpg").write_text("no picture")
    return tmp_path


GOOD = [
    {"id": "a", "audio": "one.wav", "captions": ["one two", "three"], "split": "train"},
    {"id": "b", "audio": "three.ogg", "start": 1, "captions": [], "split": "val"},
    {"id": "c", "image": "good.jpg", "target": "a b c d", "split": "train"},
]
BAD = [
    ({"id": "p", "audio": "gone.wav"}, "no such file"),
    ({"id": "q", "audio": "none.wav"}, "length zero"),
    ({"id": "r", "audio": "cut.ogg"}, "cut off"),
    ({"id": "s", "audio": "cut.flac"}, "cut off"),
    ({"id": "t", "image": "text.jpg"}, "not a picture"),
    ({"id": "u", "image": "cut.jpg"}, "cannot be decoded"),
    ({"id": "v", "image": "good.jpg", "target": ""}, "caption 1 is empty"),
    ({"id": "a", "image": "good.jpg"}, "already used in line 1"),
    ({"id": "w", "image": 5}, "image must be a text"),
    ({"id": "x", "audio": "one.wav", "start": 4}, "beyond the end"),
]


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("workers", ["1", "3"])
def test_every_bad_row_is_named_with_its_line(folder: Path, capsys: pytest.CaptureFixture[str], workers: str) -> None:
    rows = [row for pair in zip(GOOD, BAD, strict=False) for row in (pair[0], pair[1][0])] + [row for row, _ in BAD[3:]]
    file = write(folder / "m.jsonl", rows)
    with pytest.raises(InputError, match=r"m\.jsonl: 10 bad rows of 13"):
        check.run(options(file, "--workers", workers))
    lines = capsys.readouterr().out.splitlines()[:10]
    numbers = [2, 4, 6, *range(7, 14)]
    for (_, message), number, line in zip(BAD, numbers, lines, strict=True):
        assert line.startswith(f"{file}:{number}: ")
        assert message in line


def test_a_picture_of_too_many_pixels_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("1", (12_000, 12_000)).save(folder / "wide.png")
    file = write(folder / "m.jsonl", [{"image": "wide.png"}])
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        assert main(["check-data", file]) == 2
    assert messages == []  # Pillow has one of its own
    assert "wide.png: 144,000,000 pixels, the limit is" in capsys.readouterr().err


def test_figures_of_good_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(folder / "m.jsonl", GOOD)
    assert check.run(options(file)) == 0
    text = capsys.readouterr().out
    for line in (
        "m.jsonl: 3 rows, 0 bad",
        "splits    train 2, val 1",
        "inputs    audio 2, image 1",
        "seconds   min 1, median 1.50, max 2 s; 3 in all",
        "width     min 40, median 40, max 40 pixels",
        "height    min 30, median 30, max 30 pixels",
        "captions  min 1, median 1.50, max 2 an input; 3 in all",
        "words     min 1, median 2, max 4",
        "no caption 1 rows: fine for prediction",
    ):
        assert line in text


def test_one_split_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(folder / "m.jsonl", [*GOOD, {"id": "z", "audio": "cut.ogg", "split": "test"}])
    assert check.run(options(file, "--split", "train", "--json")) == 0
    (report,) = json.loads(capsys.readouterr().out)["manifests"]
    assert (report["rows"], report["inputs"], report["faults"]) == (2, {"audio": 1, "image": 1}, [])
    with pytest.raises(InputError, match=r"1 bad row: .*m\.jsonl:4: .*cut\.ogg"):
        check.run(options(file, "--split", "test", "--json"))
    (report,) = json.loads(capsys.readouterr().out)["manifests"]
    assert [fault["line"] for fault in report["faults"]] == [4]


def test_an_empty_manifest_is_a_fault(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(folder / "empty.jsonl", [])
    with pytest.raises(InputError, match=r"1 bad row: .*empty\.jsonl:1: the manifest is empty"):
        check.run(options(file))
    assert f"{file}:1: the manifest is empty" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"gone\.jsonl.*no such file"):
        check.run(options(str(folder / "gone.jsonl")))


def test_tokens_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    (folder / "model").mkdir()
    words.save(str(folder / "model" / "tokenizer.json"))
    file = write(folder / "m.jsonl", [{"image": "good.jpg", "captions": ["one, two.", "three"]}])
    assert check.run(options(file, "--tokenizer", str(folder / "model"))) == 0
    assert "tokens    min 1, median 2.50, max 4" in capsys.readouterr().out
    (folder / "bare").mkdir()
    with pytest.raises(InputError, match=r"--tokenizer .*bare: the folder .* holds no tokenizer"):
        check.run(options(file, "--tokenizer", str(folder / "bare")))


def test_headers_alone_find_what_they_can(folder: Path) -> None:
    rows = [row for row, _ in BAD if row["id"] in "qrstuvx"]
    examples, _ = read_manifest(write(folder / "m.jsonl", rows))
    shallow = inspect.inspect(examples, deep=False)
    assert [fault.line for fault in shallow.faults] == [1, 2, 4, 7]  # a broken flac or jpeg shows in decoding only
    assert [fault.line for fault in inspect.inspect(examples).faults] == [1, 2, 3, 4, 5, 7]
    assert inspect.inspect(examples, {"image": "image"}, deep=False).faults == shallow.faults[2:3]


SCHEMA = """
name: bar
intents: {order: , cancel: }
slots: {drink: , size: {values: [small, large]}}
"""
MEANT = [
    {"intent": "order", "slots": {"drink": "Iced  Tea", "size": "small"}, "transcript": "a small iced tea please"},
    {"intent": "ordr", "slots": {"drink": "tea"}},
    {"intent": "order", "slots": {"drinks": "tea", "size": "huge"}},
    {"slots": {"drink": "tea"}},
    {"intent": "cancel", "slots": [["drink"]]},
    {"intent": "order", "slots": [["drink", "tea"], ["drink", "tea, cold"]], "transcript": "coffee"},
]


def test_meanings_are_compared_with_a_schema(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bar.yaml").write_text(SCHEMA)
    rows = [{"audio": "gone.wav"}, *({"audio": "one.wav", **row} for row in MEANT)]
    file = write(folder / "m.jsonl", rows)
    with pytest.raises(InputError, match=r"m\.jsonl: 5 bad rows of 7"):
        check.run(options(file, "--schema", str(folder / "bar.yaml")))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{file}:1: ")
    assert lines[1:5] == [
        f"{file}:3: intent 'ordr' is not in schema bar; did you mean 'order'?",
        f"{file}:4: slot 'drinks' is not in schema bar; did you mean 'drink'?; "
        "slot 'size': 'huge' is not among its values; choose from small, large",
        f"{file}:5: no intent in the field 'intent' (--intent-field names another)",
        f'{file}:6: slots: each must be [type, value], found ["drink"]',
    ]
    assert lines[-4:] == [
        "  intents   1 of 2 in schema bar: order 2",
        "  slots     2 of 2 in schema bar: drink 2, size 1",
        "  values    2 of 3 do not occur in their row's transcript",
        "  values    1 contain ', ', which separates several values",
    ]
    assert "seconds   min 1, median 1, max 1 s; 2 in all" in "\n".join(lines)  # of the two good rows


def test_meanings_as_json_from_another_field(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"audio": "one.wav", "label": 3}, {"audio": "one.wav", "tens": 1, "label": 3}]
    file = write(folder / "m.jsonl", rows)
    assert check.run(options(file, "--schema", "digits", "--intent-field", "label", "--json")) == 0
    figures = json.loads(capsys.readouterr().out)["manifests"][0]["schema"]
    assert (figures["name"], figures["intents"]["3"], figures["intents"]["4"], figures["slots"]) == ("digits", 2, 0, {})
    with pytest.raises(InputError, match=r"2 bad rows of 2"):
        check.run(options(file, "--schema", "digits", "--intent-field", "tens+label"))
    out = capsys.readouterr().out
    assert f"{file}:1: no intent in the field 'tens+label'" in out
    assert f"{file}:2: intent '1_3' is not in schema digits" in out
    with pytest.raises(InputError, match=r"schema digit: no such file; shipped schemas:"):
        check.run(options(file, "--schema", "digit"))


@pytest.mark.parametrize(("name", "schema", "rows"), [("slurp_tts", "slurp", 600), ("fsdd", "digits", 2000)])
def test_real_data_fit_their_schemas(name: str, schema: str, rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    file = SHARED / name / "manifest.jsonl"
    if not file.exists():
        pytest.skip(f"../shared/data/{name} is not here")
    field = "label" if name == "fsdd" else "intent"
    assert check.run(options(str(file), "--schema", schema, "--intent-field", field)) == 0
    assert f"{rows} rows, 0 bad" in capsys.readouterr().out


def test_rows_of_text_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bar.yaml").write_text(SCHEMA)
    rows = [*MEANT[:2], {"context": "tea", "intent": "order", "slots": {}}, {"intent": "order"}]
    file = write(folder / "m.jsonl", [row if "transcript" in row else {"transcript": "tea", **row} for row in rows[:3]])
    with pytest.raises(InputError, match=r"1 bad row: .*m\.jsonl:2: intent 'ordr' is not in schema bar"):
        check.run(options(file, "--schema", str(folder / "bar.yaml")))
    text = capsys.readouterr().out
    assert "m.jsonl: 3 rows, 1 bad" in text
    assert "  inputs    none\n" in text
    assert "  text      2 rows of text alone\n" in text
    assert "  intents   1 of 2 in schema bar: order 2\n" in text
    file = write(folder / "n.jsonl", [rows[3], {"signals": [1, 2], "context": "x"}, {"context": "x"}])
    with pytest.raises(InputError, match=r"1 bad row: .*n\.jsonl:1: no input"):
        check.run(options(file, "--json"))
    (report,) = json.loads(capsys.readouterr().out)["manifests"]
    assert (report["rows"], report["inputs"], report["text_alone"]) == (3, {"signals": 1}, 1)


def test_the_texts_of_slurp_fit_their_schema(capsys: pytest.CaptureFixture[str]) -> None:
    file = SHARED / "slurp" / "manifest.jsonl"
    if not file.exists():
        pytest.skip("../shared/data/slurp is not here")
    assert check.run(options(str(file), "--schema", "slurp", "--intent-field", "scenario+action", "--json")) == 0
    (report,) = json.loads(capsys.readouterr().out)["manifests"]
    assert (report["rows"], report["text_alone"], report["inputs"], report["faults"]) == (4431, 4431, {}, [])
    figures = report["schema"]
    assert sum(figures["intents"].values()) == 4431
    assert len([name for name, count in figures["intents"].items() if count]) > 40
    assert figures["in_transcript"] > 0.99 * figures["free"]
    words = ("--split", "test", "--schema", "slurp", "--intent-field", "scenario+action")
    assert check.run(options(str(file), *words)) == 0
    assert "724 rows, 0 bad" in capsys.readouterr().out


def test_torch_is_not_needed(folder: Path) -> None:
    file, schema = write(folder / "m.jsonl", GOOD), str(folder / "s.yaml")
    Path(schema).write_text("slots: {size: }")
    code = (
        "import sys, argparse; from mmprefix.cli import check_data as check; p = argparse.ArgumentParser(); "
        "check.add_arguments(p); "
        f"check.run(p.parse_args([{file!r}, '--schema', {schema!r}])); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "rows"), [("photos", 6), ("coco_mini", 270)])
def test_real_data_are_clean(name: str, rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    file = SHARED / name / "manifest.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not here")
    assert check.run(options(str(file))) == 0
    assert f"{rows} rows, 0 bad" in capsys.readouterr().out
