"""Plans of household tasks → the steps in a writer's words, beside the steps of the nearest plan trained on.

    python -m benchmarks.studies.embodied.alfred write ../shared/data/personal_alfred --out data/alfred_steps
    python -m benchmarks.studies.embodied.alfred score --data data/alfred_steps --rows 1057

``write`` makes the manifest: the neutral plan as context, its actions numbered as the steps are, so that a text which
follows the numbers has as many; its numbered steps as the caption. ``score`` compares test rows, evenly chosen, whose
plans are in no other split: the texts of ``--model``, a saved model that reads plans as context, the steps of the
nearest plan (highest cosine of TF-IDF; its first writer's), and those of the writers. ROUGE-L is that of the whole
text; "at its place" that of each step beside the writer's step of the same number, 0 where there is none; "names" the
share of the plan's actions at whose number a step stands that names a thing of the action (chosen here: no published
step accuracy of such texts is known to us); "count" the share of texts with as many steps as actions. Letter case and
punctuation do not count.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmprefix
from benchmarks.lib.report import markdown_table, publish, versions
from mmprefix.metrics.rouge import rouge_l

_NUMBER = re.compile(r"(?<= )\d+: ")
_VERBS = re.compile(r"^(goto|pick up|put|toggle|heat|cool|clean|slice)\s+")
_JOINING = {"at", "in", "on", "with", "sliced"}


def numbered(steps: Sequence[str]) -> str:
    """One text of several steps, as in ``1: Turn left. 2: Take the cup.``, numbered from 1."""
    return " ".join(f"{number}: {step}" for number, step in enumerate(steps, start=1))


def numbered_plan(plan: str) -> str:
    """Plan whose actions are numbered from 1, as in ``task: ...; plan: 1: goto desk; 2: pick up cup``."""
    before, mark, listed = plan.rpartition("plan: ")
    return before + mark + "; ".join(f"{number}: {action}" for number, action in enumerate(listed.split("; "), start=1))


def plain_plan(plan: str) -> str:
    """Plan without those numbers."""
    return _NUMBER.sub("", plan)


def split_steps(text: str) -> list[str]:
    """Steps of such a text, in order; a number out of turn belongs to the step that it stands in."""
    starts, place = list[tuple[int, int]](), 0
    while match := re.compile(rf"(?:^|\s){len(starts) + 1}:\s*").search(text, place):
        starts.append((match.start(), match.end()))
        place = match.end()
    ends = [*(start for start, _ in starts[1:]), len(text)][: len(starts)]
    return [text[start:end].strip() for (_, start), end in zip(starts, ends, strict=True)]


def words(text: str) -> list[str]:
    """Words in small letters, without punctuation."""
    return re.findall(r"[a-z0-9]+", text.lower())


def actions(plan: str) -> list[set[str]]:
    """Words for the things of each action of a plan, in order."""
    listed = plain_plan(plan).rpartition("plan:")[2].split(";")
    return [set(words(_VERBS.sub("", action.strip()))) - _JOINING for action in listed if action.strip()]


def write(source: Path, folder: Path) -> None:
    """Write the manifest of plans and steps to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.jsonl").open("w", encoding="utf-8") as lines:
        for line in (source / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            kept = {
                "id": row["id"],
                "context": numbered_plan(row["plan"]),
                "captions": [numbered(row["steps"])],
                "split": row["split"],
            }
            lines.write(json.dumps(kept) + "\n")


def read(folder: Path, split: str) -> list[dict[str, Any]]:
    """Rows of a split of the written manifest."""
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def nearest(train: Sequence[dict[str, Any]], plans: Sequence[str]) -> list[str]:
    """Steps of the train plan that is nearest to each of ``plans``, by the cosine of TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer: Any = TfidfVectorizer(ngram_range=(1, 2))
    known = vectorizer.fit_transform([plain_plan(row["context"]) for row in train])
    best = (vectorizer.transform([plain_plan(plan) for plan in plans]) @ known.T).argmax(axis=1).A1
    return [train[int(index)]["captions"][0] for index in best]


def scores(texts: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the rows of ROUGE-L of the text, of its steps at their places, and of what the steps name."""
    sums = dict.fromkeys(("rouge_l", "at its place", "names", "count"), 0.0)
    for text, row in zip(texts, rows, strict=True):
        own, wanted, things = split_steps(text), split_steps(row["captions"][0]), actions(row["context"])
        pairs = list(zip(own, wanted, strict=False))
        named = [bool(set(words(step)) & thing) for step, thing in zip(own, things, strict=False)]
        sums["rouge_l"] += rouge_l(words(" ".join(own)), [words(" ".join(wanted))])
        sums["at its place"] += sum(rouge_l(words(a), [words(b)]) for a, b in pairs) / max(len(own), len(wanted))
        sums["names"] += sum(named) / len(things)
        sums["count"] += len(own) == len(things)
    return {name: value / len(rows) for name, value in sums.items()}


def score(model_folder: str | None, data: Path, count: int, file: str | None) -> None:
    """Print the table of the model, if there is one, of copying, and of the writers themselves."""
    train, test = read(data, "train"), read(data, "test")
    rows = test[:: max(1, len(test) // count)][:count]
    began, written = time.process_time(), list[str]()
    if model_folder is not None:
        model: Any = mmprefix.load(model_folder, device="cpu")
        written = model([{} for _ in rows], context=[row["context"] for row in rows])
    seconds = time.process_time() - began
    ways = {
        **({"trained prefix": written} if written else {}),
        "nearest plan, copied": nearest(train, [row["context"] for row in rows]),
        "the writers themselves": [row["captions"][0] for row in rows],
    }
    table = {name: scores(texts, rows) for name, texts in ways.items()}
    body = [[name, *(f"{value:.3f}" for value in figures.values())] for name, figures in table.items()]
    shown = [{"plan": row["context"], "written": text} for row, text in zip(rows[:5], written, strict=False)]
    results = {"versions": versions(), "rows": len(rows), "scores": table, "cpu_seconds": seconds, "samples": shown}
    publish(results, markdown_table(["steps of", "ROUGE-L", "at its place", "names", "count"], body), file)


def main() -> None:
    """Run the command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="command", required=True)
    writing, scoring = parts.add_parser("write"), parts.add_parser("score")
    writing.add_argument("source", type=Path, help="folder of personal_alfred")
    writing.add_argument("--out", type=Path, required=True)
    scoring.add_argument("--model", help="folder of the saved model")
    scoring.add_argument("--data", type=Path, required=True, help="what write has made")
    scoring.add_argument("--rows", type=int, default=100, help="test rows (default: 100)")
    scoring.add_argument("--json", help="file for all figures")
    options = parser.parse_args()
    if options.command == "write":
        write(options.source, options.out)
    else:
        score(options.model, options.data, options.rows, options.json)


if __name__ == "__main__":
    main()
