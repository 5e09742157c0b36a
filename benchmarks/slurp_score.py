"""Time of scoring as many predictions as SLURP's test set has recordings.

    python -m benchmarks.slurp_score [--folder ../shared/parity] [--recordings 13078] [--repeat 5]

The folder has SLURP's gold file and a prediction file of its release, a part of the test set each; recordings are
repeated under other names until there are enough. Timed are the function ``slu``, with empty caches of its edit
distances, and the whole of ``mmprefix evaluate``, a new process that reads both files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.report import markdown_table
from benchmarks.lib.timing import interleave
from mmprefix.metrics import slu
from mmprefix.metrics.edit_distance import char_distance, word_distance

Records = list[dict[str, Any]]


def read_records(folder: Path, recordings: int) -> tuple[Records, Records]:
    """``recordings`` predictions, each of one gold recording, and the gold sentences of these recordings."""
    gold, predicted = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("slurp_gold.jsonl", "slurp_pred_multi_hermit.jsonl")
    )
    by_file = {record["file"]: record for record in predicted}
    pairs = [
        (by_file[part["file"]], sentence)
        for sentence in gold
        for part in sentence["recordings"]
        if part["file"] in by_file
    ]
    predictions: Records = []
    sentences: dict[tuple[int, int], dict[str, Any]] = {}
    for number in range(recordings):
        copy_number, index = divmod(number, len(pairs))
        record, sentence = pairs[index]
        predictions.append(record | {"file": f"{copy_number}-{record['file']}"})
        copy = sentences.setdefault((copy_number, sentence["slurp_id"]), sentence | {"recordings": []})
        copy["recordings"].append({"file": predictions[-1]["file"]})
    return predictions, list(sentences.values())


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="time of scoring SLURP's test set")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "parity")
    parser.add_argument("--recordings", type=int, default=13078)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args(argv)
    predictions, gold = read_records(args.folder, args.recordings)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("predictions.jsonl", "gold.jsonl")]
        for file, records in zip(files, (predictions, gold), strict=True):
            file.write_text("".join(json.dumps(record) + "\n" for record in records))

        def score() -> dict[str, Any]:
            word_distance.cache_clear()
            char_distance.cache_clear()
            return slu(predictions, gold)

        def evaluate() -> None:
            arguments = ["evaluate", str(files[0]), "--task", "slu", "--gold", str(files[1]), "--json"]
            subprocess.run([sys.executable, "-m", "mmprefix", *arguments], check=True, stdout=subprocess.DEVNULL)

        times = interleave({"slu": score, "mmprefix evaluate": evaluate}, args.repeat)
    scores = score()
    print(f"{scores['scored']} recordings scored, SLU-F1 {scores['slu_f1']:.4f}")
    rows = [[name, *(f"{wall:.2f}" for wall in (min(t.wall), t.as_dict()["wall_median"]))] for name, t in times.items()]
    print(markdown_table(["program", "wall s, least", "wall s, median"], rows))
    return {"scored": scores["scored"], "times": {name: taken.as_dict() for name, taken in times.items()}}


if __name__ == "__main__":
    main()
