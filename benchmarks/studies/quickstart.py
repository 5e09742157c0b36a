"""Quality of the quick start: exact captions and CIDEr-D of held-out scenes, against shuffled inputs.

    python -m benchmarks.studies.quickstart [runs/quickstart]

Reads the captions written by the run's test, scores them anew, and exits with 1 if a kind of input misses the aim: at
least 60 % of captions equal to a reference, and CIDEr-D at least five times that of the captions of other inputs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mmprefix.metrics import caption

EXACT, GAIN = 0.6, 5.0


def shuffled_cider(rows: list[dict[str, Any]]) -> float:
    """CIDEr-D if every input gets another one's caption: mean over rotations by sevenths of the rows."""
    predictions, references = [r["prediction"] for r in rows], [r["references"] for r in rows]
    shifts = [round(len(rows) * k / 7) or 1 for k in range(1, 7)]
    scores = [caption(predictions[s:] + predictions[:s], references)["cider_d"] for s in shifts]
    return sum(map(float, scores)) / len(scores)


def main(root: Path) -> int:
    """Print a line for each kind of input; 1 if one misses the aim, else 0."""
    files = sorted(root.glob("logs/*/captions/test-*.jsonl"), key=lambda file: file.stat().st_mtime)
    if not files:
        print(f"{root}: no captions of a test; run mmprefix fit --config recipes/quickstart.yaml first")
        return 1
    rows = [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines()]
    missed = False
    for kind in sorted({row["group"] for row in rows}):
        own = [row for row in rows if row["group"] == kind]
        scores = caption([r["prediction"] for r in own], [r["references"] for r in own])
        exact, cider, other = scores["exact_match"], scores["cider_d"], shuffled_cider(own)
        missed |= exact < EXACT or cider < GAIN * other
        ratio = cider / other if other else float("inf")
        print(f"{kind:6} {len(own):4} scenes   exact {exact:6.1%}", end="   ")
        print(f"CIDEr-D {cider:.3f}   shuffled {other:.3f}   {ratio:.1f}x")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")))
