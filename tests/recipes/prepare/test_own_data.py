"""``mmprefix prepare SOURCE``: every form of table and folder gives manifests that fit reads, unchanged by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmprefix.cli import main as cli
from mmprefix.data.manifest import read_manifest
from tiny.datasets import missing_rows, read_json_lines, write_picture, write_sound, write_table
from tiny.shell import Shell

NAMES = [f"{number}.jpg" for number in range(8)]
TEXTS = {name: [f"a dog, number {name[0]}", "it runs \"fast\" today"] for name in NAMES}  # fmt: skip
PAIRS = [(name, text) for name in NAMES for text in TEXTS[name]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media") / "photos"
    for name in NAMES:
        write_picture(folder / name)
    return folder


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def prepared(out: Path) -> dict[str, list[str]]:
    """Captions by file name over all manifests of ``out``, each read without a fault; no file is in two of them."""
    captions: dict[str, list[str]] = {}
    for manifest in sorted(out.glob("*.jsonl")):
        examples, faults = read_manifest(manifest)
        assert faults == []
        for example in examples:
            (ref,) = example.inputs.values()
            name = Path(ref.path).name
            assert name not in captions
            captions[name] = [*example.captions]
    return captions


def pipe_table(file: Path) -> None:
    """Flickr30k's results.csv: bars with a space behind them, one row a caption."""
    rows = [f"{name}| {n}| {text}" for name in NAMES for n, text in enumerate(TEXTS[name])]
    file.write_text("\n".join(["image_name| comment_number| comment", *rows]))


def tokens(file: Path) -> None:
    file.write_text("".join(f"{name}#{n}\t{text}\n" for name in NAMES for n, text in enumerate(TEXTS[name])))


def karpathy(file: Path) -> None:
    sentences = {name: [{"raw": text, "tokens": text.split()} for text in TEXTS[name]] for name in NAMES}
    images = [{"filename": name, "filepath": "photos", "sentences": sentences[name]} for name in NAMES]
    file.write_text(json.dumps({"images": images, "dataset": "own"}))


def coco(file: Path) -> None:
    images = [{"id": 100 + n, "file_name": name} for n, name in enumerate(NAMES)]
    notes = [{"id": n, "image_id": 100 + NAMES.index(name), "caption": text} for n, (name, text) in enumerate(PAIRS)]
    file.write_text(json.dumps({"info": {}, "images": images, "annotations": notes}))


def delimited(header: list[str] | None, separator: str = ",") -> Callable[[Path], None]:
    """Writer of one row a caption."""

    def write(file: Path) -> None:
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, delimiter=separator)
            writer.writerows([header, *PAIRS] if header else PAIRS)

    return write


def wide(file: Path) -> None:
    """Clotho's form: five columns of captions, here two."""
    write_table(file, ["file_name", "caption_1", "caption_2"], [[name, *TEXTS[name]] for name in NAMES])


def json_of(content: Any) -> Callable[[Path], Any]:
    return lambda file: file.write_text(json.dumps(content))


def lines_of(rows: list[dict[str, Any]]) -> Callable[[Path], Any]:
    return lambda file: file.write_text("".join(json.dumps(row) + "\n" for row in rows))


FORMS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "one row a caption": ("captions.csv", delimited(["image", "caption"])),
    "names that nobody knows": ("captions.csv", delimited(["Foto", "Beschreibung"])),
    "semicolons and capitals": ("captions.CSV", delimited(["Image", "Caption"], ";")),
    "tabs": ("captions.tsv", delimited(["file", "sentence"], "\t")),
    "no header": ("captions.csv", delimited(None)),
    "no header, tabs": ("captions.tsv", delimited(None, "\t")),
    "flickr8k at kaggle": ("captions.txt", delimited(["image", "caption"])),
    "flickr30k at kaggle": ("results.csv", pipe_table),
    "flickr token": ("Flickr8k.token.txt", tokens),
    "clotho": ("clotho_captions_development.csv", wide),
    "karpathy": ("dataset_own.json", karpathy),
    "coco": ("captions_train2017.json", coco),
    "list of objects": ("list.json", json_of([{"image": n, "caption": t} for n, t in PAIRS])),
    "columns about captions": (
        "about.jsonl", lines_of([{"image": n, "captions": TEXTS[n], "caption_source": "human"} for n in NAMES]),
    ),
    "names to captions": ("map.json", json_of(TEXTS)),
    "json lines": ("metadata.jsonl", lines_of([{"file_name": n, "text": t} for n, t in PAIRS])),
    "lists in json lines": ("m.jsonl", lines_of([{"path": n, "captions": TEXTS[n]} for n in NAMES])),
}  # fmt: skip


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_of_a_table(form: str, photos: Path, tmp_path: Path, shell: Shell) -> None:
    name, write = FORMS[form]
    table = tmp_path / "tables" / name
    table.parent.mkdir()
    write(table)
    code, out, err = shell("prepare", table, "--media-root", photos, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert prepared(tmp_path / "out") == TEXTS
    advice = f"--data.root {tmp_path / 'out'} --data.batch_size 4 --trainer.max_epochs 100\n"  # two batches an epoch
    assert out.endswith(f"next: mmprefix fit --config recipes/pictures.yaml {advice}")
    counts = [len(read_json_lines(tmp_path / "out" / f"{split}.jsonl")) for split in ("train", "val")]
    assert counts == [7, 1]


def test_captions_may_get_one_full_stop(photos: Path, tmp_path: Path, shell: Shell) -> None:
    forms = {
        "a dog runs .": "a dog runs.", "a dog , a cat": "a dog, a cat.", "two dogs..": "two dogs.", "a dog!": "a dog!",
    }  # fmt: skip
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": NAMES[0], "captions": list(forms)}) + "\n")
    words = ("--media-root", photos, "--out", tmp_path / "out", "--full-stop")
    assert shell("prepare", tmp_path / "t.jsonl", *words)[0] == 0
    assert prepared(tmp_path / "out") == {NAMES[0]: list(forms.values())}


def test_the_split_is_drawn_by_seed_or_read(photos: Path, tmp_path: Path, shell: Shell) -> None:
    table = tmp_path / "t.csv"
    delimited(["image", "caption"])(table)

    def drawn(*words: str) -> list[str]:
        assert shell("prepare", table, "--media-root", photos, "--out", tmp_path / "out", *words)[0] == 0
        return [row["id"] for row in read_json_lines(tmp_path / "out" / "val.jsonl")]

    half = drawn("--val-share", "0.5")
    assert len(half) == 4
    assert drawn("--val-share", "0.5") == half != drawn("--val-share", "0.5", "--seed", "1")
    rows = [[name, text, "valid" if name in NAMES[:3] else "Training"] for name, text in PAIRS]
    write_table(table, ["image", "caption", "split"], rows)
    assert drawn() == NAMES[:3]
    assert "says itself what to validate on" in shell.refuses(
        "prepare", table, "--media-root", photos, "--out", tmp_path, "--val-share", "0.5"
    )


def test_parts_of_sounds_and_fields_are_kept(tmp_path: Path, shell: Shell) -> None:
    write_sound(tmp_path / "long.wav", 4)
    write_sound(tmp_path / "b.flac", 1)
    rows = [
        ["long.wav", "0", "1.5", "first", "u"],
        ["long.wav", "2", "", "second", "u"],
        ["b.flac", "", "", "other", ""],
    ]
    write_table(tmp_path / "t.csv", ["audio", "start", "end", "caption", "user"], rows)
    assert shell("prepare", tmp_path / "t.csv", "--out", tmp_path, "--val-share", "0")[0] == 0
    written = read_json_lines(tmp_path / "train.jsonl")
    assert [(row.get("start"), row.get("end"), row["duration"], row.get("user")) for row in written] == [
        (0, 1.5, 1.5, "u"),
        (2, None, 2.0, "u"),
        (None, None, 1.0, None),
    ]
    examples, faults = read_manifest(tmp_path / "train.jsonl")
    assert ([row.captions for row in examples], faults) == ([("first",), ("second",), ("other",)], [])


def test_captions_beside_files_and_names_of_folders(tmp_path: Path, shell: Shell) -> None:
    beside, labels = tmp_path / "beside", tmp_path / "labels"
    for name in ("a.png", "deep/b.png", "c.png"):
        write_picture(beside / name)
    (beside / "a.txt").write_text("one\n\n  two  words\n")
    (beside / "deep" / "b.txt").write_text("three")
    code, out, _ = shell("prepare", beside, "--out", tmp_path / "1", "--val-share", "0")
    assert code == 0
    assert "1 files have no captions beside them" in out
    assert prepared(tmp_path / "1") == {"a.png": ["one", "two words"], "b.png": ["three"]}
    for name in ("train/dog_barking/1.wav", "train/dog_barking/2.wav", "train/rain/3.wav", "val/rain/4.wav"):
        write_sound(labels / name)
    code, out, _ = shell("prepare", labels, "--out", tmp_path / "2")
    assert code == 0
    assert "recipes/sounds.yaml" in out
    rows = {split: read_json_lines(tmp_path / "2" / f"{split}.jsonl") for split in ("train", "val")}
    assert [(row["captions"], row["label"]) for row in rows["train"]] == [
        (["dog barking"], "dog_barking"), (["dog barking"], "dog_barking"), (["rain"], "rain"),
    ]  # fmt: skip
    assert [row["id"] for row in rows["val"]] == ["val/rain/4.wav"]
    write_sound(labels / "loose.wav")
    assert "loose.wav has neither a caption beside it" in shell.refuses("prepare", labels, "--out", tmp_path / "3")


def test_files_are_found_by_name_and_hinted_at(
    photos: Path, tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stems = tmp_path / "t.csv"
    write_table(
        stems, ["file", "caption"], [[f"/old/place/{name[:-4]}", "a dog runs"] for name in NAMES] + [["gone", "x"]]
    )
    assert shell("prepare", stems, "--media-root", photos.parent, "--out", "out", "--val-share", "0")[0] == 0
    assert len(prepared(tmp_path / "out")) == 8
    assert missing_rows(tmp_path / "out") == [["train", "missing", "gone", "no such file"]]
    (tmp_path / "photos").symlink_to(photos)
    table = tmp_path / "tables" / "t.csv"
    table.parent.mkdir()
    delimited(["image", "caption"])(table)
    code, out, _ = shell("prepare", table, "--out", "out2", "--val-share", "0")  # the one folder near that has them all
    assert code == 0
    assert "files are those below " in out
    assert prepared(tmp_path / "out2") == TEXTS
    (tmp_path / "photos").unlink()
    message = shell.refuses("prepare", table, "--out", "out3")
    assert "none of its 8 files exists under" in message
    assert "the first is 0.jpg; --media-root DIR names their folder" in message
    assert "--media-root none: no such folder" in shell.refuses("prepare", table, "--out", "x", "--media-root", "none")
    write_picture(photos / "again" / "0.jpg")  # two files of one name: neither is taken for a third
    write_table(stems, ["file", "caption"], [["x/0.jpg", "a dog runs"], ["x/1.jpg", "a dog runs"]])
    assert shell("prepare", stems, "--media-root", photos, "--out", "out4", "--val-share", "0")[0] == 0
    assert [*prepared(tmp_path / "out4")] == ["1.jpg"]
    (photos / "again" / "0.jpg").unlink()


def test_what_is_wrong_is_one_line(photos: Path, tmp_path: Path, shell: Shell) -> None:
    def refusal(name: str, text: str, *words: str) -> str:
        (tmp_path / name).write_text(text)
        return shell.refuses("prepare", tmp_path / name, "--media-root", photos, "--out", tmp_path / "out", *words)

    assert "t.csv: --caption-columns: no column looks like it; there are image, n" in refusal(
        "t.csv", "image,n\n0.jpg,1\n"
    )
    assert "--file-column: no column 'x'; there are image, caption" in refusal(
        "t.csv", "image,caption\n0.jpg,a\n", "--file-column", "x"
    )
    assert "t.csv:3: no caption" in refusal("t.csv", "image,caption\n0.jpg,a\n1.jpg,\n")
    assert "t.csv:2: no file is named" in refusal("t.csv", "image,caption\n,a\n1.jpg,b\n")
    assert "t.csv:2: a quote opens here and never ends" in refusal("t.csv", 'image,caption\n0.jpg,"a\n1.jpg,b\n')
    assert "t.csv:2: split 'x': give one of train" in refusal("t.csv", "image,caption,split\n0.jpg,a,x\n")
    assert "t.csv:2: start must be a number of seconds" in refusal("t.csv", "image,caption,start\n0.jpg,a,soon\n")
    assert "t.csv: no rows" in refusal("t.csv", "image,caption\n")
    assert "t.json: not JSON" in refusal("t.json", "{")
    assert "t.json: neither a list of objects" in refusal("t.json", "[1, 2]")
    assert "t.token:2: not NAME#NUMBER" in refusal("t.token", "0.jpg#0\ta dog\nno token\n")
    assert "not a table that is known by its ending" in refusal("t.xlsx", "x")
    assert "no such file or folder, and no known data set" in shell.refuses("prepare", tmp_path / "none", "--out", "x")
    write_sound(photos / "s.wav")
    assert "not all of one kind (.jpg, .wav)" in refusal("t.csv", "file,caption\n0.jpg,a\ns.wav,b\n")
    (photos / "s.wav").unlink()
    (tmp_path / "empty").mkdir()
    assert "holds no pictures, sounds or videos" in shell.refuses(
        "prepare", tmp_path / "empty", "--out", tmp_path / "x"
    )
    assert "needed" not in shell.refuses("prepare")


def test_known_data_sets_are_verbs_too(clotho: Path, tmp_path: Path, shell: Shell) -> None:
    assert shell("prepare", "clotho", clotho, "--out", tmp_path / "out")[0] == 0
    assert len(read_json_lines(tmp_path / "out" / "train.jsonl")) == 3
    message = shell.refuses("prepare", "speech-commands", "--out", tmp_path)
    assert "see mmprefix prepare speech_commands --help" in message
    with pytest.raises(SystemExit):
        cli.main(["prepare", "coco", "--help"])


def test_many_files_are_trained_as_the_recipe_says(tmp_path: Path, shell: Shell) -> None:
    folder = tmp_path / "many"
    for number in range(113):
        write_picture(folder / f"{number}.png")
    rows = [{"image": f"{number}.png", "caption": f"picture {number}"} for number in range(113)]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = shell("prepare", folder / "m.jsonl", "--out", tmp_path / "out")
    assert code == 0
    assert out.endswith(f"next: mmprefix fit --config recipes/pictures.yaml --data.root {tmp_path / 'out'}\n")
