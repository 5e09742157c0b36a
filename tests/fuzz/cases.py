"""Cases: input number n of a seed → a mutated file, the words of a command that reads it, and what must hold.

A case is drawn from its number alone, so that ``--only N`` makes it again.
"""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from . import mutations, seeds

SHARES = {  # kind → inputs of each hundred
    "sound": 27, "picture": 14, "manifest": 22, "recipe": 10, "model": 8, "packed": 4, "checkpoint": 6, "store": 4,
    "shards": 5,
}  # fmt: skip
Check = Callable[[int, str], str | None]


@dataclass(frozen=True)
class Case:
    """Words of a run, what was mutated, and a check of exit code and standard output → a fault or None."""

    kind: str
    change: str
    words: list[str]
    check: Check


def kind_of(number: int) -> str:
    """Kind of input ``number``; every hundred inputs hold all kinds by their shares, in a fixed mixed order."""
    kinds = [kind for kind, share in SHARES.items() for _ in range(share)]
    random.Random("kinds").shuffle(kinds)
    return kinds[number % len(kinds)]


def make_case(number: int, seed: int, folder: Path, base: Path) -> Case:
    """Case ``number`` of ``seed``, its files written below the empty ``folder`` from the seeds in ``base``."""
    kind, rng = kind_of(number), random.Random(f"{seed}-{number}")
    return _MAKERS[kind](rng, folder, base)


def no_check(code: int, out: str) -> None:
    """Nothing but exit code, time and memory."""


def _sound(rng: random.Random, folder: Path, base: Path) -> Case:
    name = rng.choice(list(seeds.SOUNDS))
    whole = (base / "media" / name).read_bytes()
    content, change = mutations.bytes_of(whole, rng)
    file = folder / name
    file.write_bytes(content)
    row = {"id": "1", "audio": name, "caption": "a"}
    words = _read_words(rng, base, folder, file, row)

    def check(code: int, out: str) -> str | None:
        if code:
            return None
        expected, decoded = seeds.sound_seconds(content), seeds.decoded_seconds(content)
        read = _seconds_read(file)
        if expected is not None and read < 0.97 * expected - 0.05 and expected < 10:
            return f"read {read:.3f} s, the header says {expected:.3f} s"
        if decoded is not None and read < 0.97 * decoded - 0.05:
            return f"read {read:.3f} s, soundfile decodes {decoded:.3f} s"
        if content == whole[: len(content)] and len(content) < len(whole) and read < 0.9 * seeds.SECONDS:
            return f"read {read:.3f} s of a file cut from {seeds.SECONDS} s"
        return None

    return Case("sound", f"{name}: {change}", words, check)


def _seconds_read(file: Path) -> float:
    from mmprefix.media.audio import read_waveform

    return len(read_waveform(str(file), 16000)) / 16000


def _read_words(rng: random.Random, base: Path, folder: Path, file: Path, row: dict[str, str]) -> list[str]:
    """Words of a caption of ``file``, or of a check of a manifest that names it."""
    if rng.random() < 0.5:
        return ["caption", str(base / "model"), str(file), "--device", "cpu"]
    (folder / "rows.jsonl").write_text(json.dumps(row))
    return ["check-data", str(folder / "rows.jsonl"), "--workers", "1"]


def _picture(rng: random.Random, folder: Path, base: Path) -> Case:
    name = rng.choice(list(seeds.PICTURES))
    whole = (base / "media" / name).read_bytes()
    content, change = mutations.bytes_of(whole, rng)
    file = folder / name
    file.write_bytes(content)
    words = _read_words(rng, base, folder, file, {"id": "1", "image": name, "caption": "a"})

    def check(code: int, out: str) -> str | None:
        if code:
            return None
        try:
            with Image.open(io.BytesIO(content)) as picture:
                picture.load()
        except Exception as error:  # Pillow raises many kinds of errors for damaged files
            return f"accepted, but Pillow says {type(error).__name__}: {error}"
        return None

    return Case("picture", f"{name}: {change}", words, check)


def _manifest(rng: random.Random, folder: Path, base: Path) -> Case:
    name = rng.choice(("rows.csv", "rows.jsonl", "rows.tsv", "rows.csv"))
    text = (base / name).read_text()
    if rng.random() < 0.2:
        content, change = mutations.bytes_of(text.encode(), rng)
    else:
        changed, change = mutations.text_of(text, rng)
        content = changed.encode("utf-8", "surrogatepass")
    (folder / name).write_bytes(content)
    (folder / "media").symlink_to(base / "media")

    def check(code: int, out: str) -> str | None:
        rows = None if code else _rows_in(name, content)
        read = json.loads(out)["manifests"][0]["rows"] if rows is not None else rows
        return None if rows == read else f"{read} rows were read of {rows}"

    return Case("manifest", f"{name}: {change}", ["check-data", str(folder / name), "--json", "--workers", "1"], check)


def _rows_in(name: str, content: bytes) -> int | None:
    """Rows in a manifest by Python's own readers; None where these may count otherwise (captions of one input)."""
    try:
        text = content.decode("utf-8-sig")
        if name.endswith(".jsonl"):
            return len([line for line in text.split("\n") if line.strip()])
        rows = list(
            csv.reader(io.StringIO(text, newline=""), delimiter="\t" if name.endswith("tsv") else ",", strict=True)
        )
    except (ValueError, csv.Error):
        return None
    return len([row for row in rows if any(cell.strip() for cell in row)]) - 1


def _recipe(rng: random.Random, folder: Path, base: Path) -> Case:
    text = (base / "recipe.yaml").read_text().replace(str(base / "run"), str(folder / "run"))
    if rng.random() < 0.35:
        text, change = mutations.text_of(text, rng)
    else:
        data = yaml.safe_load(text)
        change = mutations.value_in(data, rng)
        text = yaml.safe_dump(data, sort_keys=False)
    (folder / "recipe.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    words = ["fit", "--config", str(folder / "recipe.yaml"), "--dry_run"]
    return Case("recipe", change, words, no_check)


def _model(rng: random.Random, folder: Path, base: Path, source: str = "model") -> Case:
    directory = folder / "model"
    shutil.copytree(base / source, directory)
    files = sorted(file for file in directory.rglob("*") if file.is_file() and file.suffix != ".md")
    file = rng.choice([*files, *([directory / "mmprefix.yaml"] * 3 if source == "model" else ())])
    harmless = False
    if file.suffix in (".yaml", ".json") and rng.random() < 0.75:
        data = yaml.safe_load(file.read_text()) if file.suffix == ".yaml" else json.loads(file.read_text())
        change = mutations.value_in(data, rng)
        file.write_text(yaml.safe_dump(data, sort_keys=False) if file.suffix == ".yaml" else json.dumps(data))
    else:
        content, change = mutations.bytes_of(file.read_bytes(), rng)
        harmless = content == file.read_bytes()
        file.write_bytes(content)
    words = ["caption", str(directory), str(base / "media" / "a.png"), "--device", "cpu"]

    def check(code: int, out: str) -> str | None:
        changed = file.suffix == ".safetensors" and not harmless
        return "tensors with changed bits were loaded" if changed and not code else None

    return Case(source, f"{file.relative_to(directory)}: {change}", words, check)


def _packed(rng: random.Random, folder: Path, base: Path) -> Case:
    return _model(rng, folder, base, "packed")


def _checkpoint(rng: random.Random, folder: Path, base: Path) -> Case:
    content, change = mutations.bytes_of((base / "last.ckpt").read_bytes(), rng)
    (folder / "last.ckpt").write_bytes(content)
    verb = rng.choice(("validate", "fit"))
    words = [verb, "--config", str(base / "recipe.yaml"), "--trainer.default_root_dir", str(folder / "run")]
    words += ["--ckpt_path", str(folder / "last.ckpt"), "--save_to", str(folder / "saved")]
    words += ["--trainer.max_epochs", "2"] if verb == "fit" else []
    return Case("checkpoint", f"{verb}: {change}", words, no_check)


def _store(rng: random.Random, folder: Path, base: Path) -> Case:
    shutil.copytree(base / "store", folder / "store")
    change = _change_one(folder / "store", rng)
    words = ["encode", "--config", str(base / "recipe.yaml"), "--cache", str(folder / "store")]
    words += ["--trainer.default_root_dir", str(folder / "run")]
    return Case("store", change, words, no_check)


def _shards(rng: random.Random, folder: Path, base: Path) -> Case:
    shutil.copytree(base / "shards", folder / "shards")
    change = _change_one(folder / "shards", rng)
    run: Any = seeds.recipe(base)
    options = run["data"]["init_args"]
    run["data"] = {
        "class_path": "mmprefix.features.StreamData",
        "init_args": {"shards": str(folder / "shards"), "val": options["val"], "batch_size": 1, "num_workers": 0},
    }
    run["trainer"]["default_root_dir"] = str(folder / "run")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(run))
    return Case("shards", change, ["fit", "--config", str(folder / "recipe.yaml")], no_check)


def _change_one(directory: Path, rng: random.Random) -> str:
    """Mutate one file of ``directory``."""
    file = rng.choice(sorted(file for file in directory.rglob("*") if file.is_file()))
    content, change = mutations.bytes_of(file.read_bytes(), rng)
    file.write_bytes(content)
    return f"{file.name}: {change}"


_MAKERS: dict[str, Callable[[random.Random, Path, Path], Case]] = {
    "sound": _sound, "picture": _picture, "manifest": _manifest, "recipe": _recipe, "model": _model, "packed": _packed,
    "checkpoint": _checkpoint, "store": _store, "shards": _shards,
}  # fmt: skip
