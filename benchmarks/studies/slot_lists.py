"""Schema whose intents list the slots that a manifest's training rows have with them.

    python -m benchmarks.studies.slot_lists slurp_tts MANIFEST --out runs/slurp_tts_slots.yaml

A model that is asked by it gives an intent no slot that the training rows never had there. Rows of other splits that do
are faults by this schema: train with ``--data.on_bad skip``.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.studies.understanding import read_rows
from mmprefix.slu.annotation import read_annotation


def with_lists(schema: str, manifest: Path) -> dict[str, Any]:
    """Content of ``schema`` (a shipped name) with ``slots`` of each intent, by the rows of the split train."""
    file = Path(__file__).parents[2] / "recipes" / "schemas" / f"{schema}.yaml"
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    seen: dict[str, set[str]] = defaultdict(set)
    for row in read_rows(manifest, "train"):
        gold = read_annotation(row, "intent")
        if gold.intent is not None:
            seen[gold.intent] |= set(gold.slots)
    for name, label in content["intents"].items():
        if seen[name]:  # an empty list is no list
            label["slots"] = sorted(seen[name])
    return content


def main(argv: Sequence[str] | None = None) -> None:
    """Write the schema to ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schema", help="name of a shipped schema")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        yaml.safe_dump(with_lists(options.schema, options.manifest), sort_keys=False), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
