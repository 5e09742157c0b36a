"""Write a file of described inputs, whose captions help to write those of inputs like them, and manifests with them.

``--out`` gets neighbours.safetensors: with ``mmprefix caption MODEL --neighbours FILE`` the captions of the training
inputs most like a new one choose among its beams (Devlin et al. 2015, https://arxiv.org/abs/1505.04467). It also gets
train.jsonl, val.jsonl and test.jsonl, as far as there are such splits, whose ``context`` is some of these captions: a
model with ``model.wording.context`` reads them in its prompt (SmallCap, https://arxiv.org/abs/2209.15323). An input of
train is never its own neighbour there. See ``mmprefix.features.neighbours``.

    python -m mmprefix.recipes.retrieve.neighbours data/flickr8k_mini --out data/flickr8k_neighbours \\
        --encoder '{class_path: mmprefix.encoders.timm.Timm, init_args: {model: models:efficientnet-lite2}}'
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mmprefix.cli.model_inputs import relocated_paths
from mmprefix.data.manifest import Example, read_manifest
from mmprefix.data.manifest_file import raw_rows
from mmprefix.data.sources import Split, manifests_of
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.features.neighbours import Neighbours
from mmprefix.parts import from_recipe
from mmprefix.recipes.align.summaries import summaries

FILE = "neighbours.safetensors"
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def read_encoder(recipe: str) -> Encoder:
    """Encoder of a recipe, ``{class_path, init_args}`` as YAML or a file of it. InputError for another text."""
    file = Path(recipe)
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8") if recipe.endswith(".yaml") else recipe)
        return from_recipe(content, Encoder)
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise InputError(
            f"--encoder {recipe}: give {{class_path: ..., init_args: ...}}, or a .yaml of it ({error})"
        ) from error


def read_examples(folder: Path, split: Split, kind: str) -> list[Example]:
    """Rows of a split, whose inputs are of ``kind``. InputError for bad rows, and for parts of files."""
    rows: list[Example] = []
    for file, own in manifests_of(split, {split: None}, str(folder)):
        read, faults = read_manifest(file, own)
        if faults:
            raise InputError(str(faults[0]))
        rows += read
    for row in rows:
        ref = row.inputs.get(kind)
        if split == "train" and not row.captions:
            raise InputError(f"{row.file}:{row.line}: has no caption; a row of train gives its captions to others")
        if ref is None or ref.start or ref.end is not None:
            reason = f"has no column {kind!r}, which the encoder reads" if ref is None else "is a part of a file"
            raise InputError(f"{row.file}:{row.line}: {reason}; neighbours are whole files of kind {kind}")
    return rows


def write_rows(rows: Sequence[Example], contexts: Sequence[str], file: Path) -> None:
    """Copy manifests with the context of each row; paths are written anew, and a context of before goes."""
    raw = {name: raw_rows(name) for name in dict.fromkeys(row.file for row in rows)}
    with file.open("w", encoding="utf-8") as written:
        for row, context in zip(rows, contexts, strict=True):
            for line in dict.fromkeys(row.lines or (row.line,)):
                copy = relocated_paths(raw[row.file][line], Path(row.file).parent, str(file))
                written.write(json.dumps({**copy, "context": context}, ensure_ascii=False) + "\n")


def find_neighbours(
    folder: Path, encoder: Encoder, out: Path, *, cache: Path = Path("features"), **numbers: int
) -> Neighbours:
    """Write manifests with contexts, and the file of neighbours; returns these. InputError for data that do not fit."""
    if out.resolve() == folder.resolve():
        raise InputError(f"--out {out}: is the folder of the data, whose manifests would be written over; give another")
    splits = {split: read_examples(folder, split, encoder.input_kind) for split in SPLITS}
    train, rows = splits["train"], [row for split in SPLITS for row in splits[split]]
    if not train:
        raise InputError(f"{folder}: has no rows of train, and neighbours are such rows")
    vectors = summaries(encoder, [row.inputs[encoder.input_kind].source for row in rows], cache).half()
    neighbours = Neighbours(encoder, vectors[: len(train)], [row.captions for row in train], **numbers)
    if len(train) <= neighbours.count:
        raise InputError(f"{folder}: has {len(train)} rows of train; --count {neighbours.count} neighbours need more")
    out.mkdir(parents=True, exist_ok=True)
    begin = 0
    for split, own in splits.items():
        part, begin = vectors[begin : begin + len(own)], begin + len(own)
        if own:
            contexts = neighbours.contexts(part, range(len(own)) if split == "train" else None)
            write_rows(own, contexts, out / f"{split}.jsonl")
    neighbours.save(out / FILE)
    return neighbours


def main(words: Sequence[str] | None = None) -> int:
    """Run as the command line asks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.jsonl and others, or a manifest.jsonl with split")
    parser.add_argument("--encoder", required=True, help="compares inputs: {class_path, init_args}, YAML or its file")
    parser.add_argument("--count", type=int, default=5, help="neighbours of each row (default 5)")
    parser.add_argument("--circle", type=int, default=10, help="nearest rows that choose a neighbour's caption")
    parser.add_argument("--judges", type=int, default=20, help="nearest rows whose captions judge texts (default 20)")
    parser.add_argument("--cache", type=Path, default=Path("features"), help="folder of encoded features")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(words)
    try:
        settings = {name: getattr(options, name) for name in ("count", "circle", "judges", "cache")}
        neighbours = find_neighbours(options.data, read_encoder(options.encoder), options.out, **settings)
    except InputError as error:
        print(f"neighbours: {error}", file=sys.stderr)
        return 2
    print(f"{options.out / FILE}: {len(neighbours.captions)} rows of train")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
