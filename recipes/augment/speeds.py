"""Write a data set with its training sounds at other speeds besides: 0.9 is slower and lower, 1.1 faster and higher.

Audio Augmentation for Speech Recognition, https://www.isca-archive.org/interspeech_2015/ko15_interspeech.html: three
speeds (0.9, 1 and 1.1) make recognisers of speech better, most of all those that learn from little.

``--out`` gets the manifests of DATA, all columns kept, and a folder ``sounds`` with the new files (FLAC, 16 bits, one
channel, the rate of the file; a part from ``start`` to ``end`` is a file of its own). Rows of val and test are as they
were. An epoch on it is so much longer, and its features are encoded once like all others.

    python -m mmprefix.recipes.augment.speeds DATA/slurp_tts --out data/slurp_speeds
    mmprefix fit --config recipes/slu_e2e_tts.yaml --data.root data/slurp_speeds --trainer.max_epochs 5
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from mmprefix.cli.model_inputs import relocated_paths
from mmprefix.data.manifest_file import raw_rows
from mmprefix.data.sources import Split, manifests_of
from mmprefix.errors import InputError
from mmprefix.media.audio import read_samples

SPEEDS = (0.9, 1.1)
FOLDER = "sounds"
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def at_speed(samples: np.ndarray, rate: int, speed: float) -> np.ndarray:
    """Samples (S,) at ``rate`` Hz → those of the same sound played ``speed`` times as fast, (S / speed,)."""
    return np.clip(soxr.resample(samples, rate * speed, rate, quality="HQ"), -1, 1)


def faster_row(row: dict[str, Any], where: str, speed: float, out: Path) -> dict[str, Any]:
    """Write the sound of ``row`` at another speed; returns the row of it, in a manifest in the folder ``out``.

    ``row`` has its path as ``out`` sees it. Raises InputError, with ``where``, for a row without one sound or a file
    that cannot be read.
    """
    name, start, end = row.get("audio"), row.get("start") or 0.0, row.get("end")
    if not isinstance(name, str):
        raise InputError(f"{where}: audio {name!r}: give the name of one file, whose speed is to be changed")
    try:
        samples, rate = read_samples(str(out / name), float(start), None if end is None else float(end))
    except (InputError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error
    key = hashlib.sha256(f"{name}\0{start}\0{end}".encode()).hexdigest()[:16]
    sound = Path(FOLDER, f"{key}_{speed:g}.flac")
    soundfile.write(out / sound, at_speed(samples, rate, speed), rate, subtype="PCM_16")
    kept = {column: value for column, value in row.items() if column not in {"start", "end"}}
    seconds = {"duration": round(len(samples) / rate / speed, 3)} if "duration" in row else {}
    named = {"id": f"{row['id']}_{speed:g}"} if row.get("id") is not None else {}
    return {**kept, **named, "audio": str(sound), **seconds}


def rows_of(folder: Path, split: Split, out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a split with their file and line, paths as a manifest in ``out`` has them."""
    for file, own in manifests_of(split, {split: None}, str(folder)):
        for line, row in raw_rows(file).items():
            if own is None or row.get("split") == own:
                yield f"{file}:{line}", relocated_paths(row, Path(file).parent, str(out / "train.jsonl"))


def write_speeds(folder: Path, out: Path, speeds: Sequence[float] = SPEEDS) -> dict[str, int]:
    """Write the data set; returns the rows of each split.

    Raises InputError for speeds that are none, for ``out`` that is not empty, and for data without rows of train or
    with a sound that cannot be read.
    """
    bad = [speed for speed in speeds if not (math.isfinite(speed) and 0.1 <= speed <= 10) or speed == 1]
    if bad or not speeds or len(set(speeds)) < len(speeds):
        raise InputError(f"--speeds {' '.join(map(str, speeds))}: give numbers from 0.1 to 10, each once, and not 1")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out}: is not empty; give a new folder")
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    for split in SPLITS:
        rows: list[dict[str, Any]] = []
        for where, row in rows_of(folder, split, out):
            rows.append(row)
            rows += [faster_row(row, where, speed, out) for speed in speeds if split == "train"]
        if rows:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (out / f"{split}.jsonl").write_text(text, encoding="utf-8")
        counts[split] = len(rows)
    if not counts["train"]:
        raise InputError(f"{folder}: has no rows of train, and those are made more")
    return counts


def main(words: Sequence[str] | None = None) -> int:
    """Run as the command line asks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.jsonl and others, or a manifest.jsonl with split")
    parser.add_argument("--speeds", type=float, nargs="+", default=list(SPEEDS), help="beside 1 (default: 0.9 1.1)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(words)
    try:
        counts = write_speeds(options.data, options.out, options.speeds)
    except InputError as error:
        print(f"speeds: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: " + ", ".join(f"{split} {count}" for split, count in counts.items() if count))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
