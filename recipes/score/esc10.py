"""Score captions of ESC-10 clips: the share that names the right class, read off the words alone.

    python recipes/score/esc10.py runs/esc10/logs/version_0/captions/val-step900.jsonl --manifest esc10/manifest.jsonl

The words of each class were fixed beforehand, from the six sentences a class has in the manifest; of one and of many. A
caption that names no class, or more than one, is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

WORDS = {
    "dog": r"dogs?|bark(s|ing|ed)?",
    "rain": r"rain(s|ing|fall|drops?)?",
    "sea waves": r"seas?|oceans?|waves?|shores?|beach(es)?|coasts?",
    "baby cry": r"bab(y|ies)|infants?|child(ren)?|cry|cries|crying|wail(s|ing)?",
    "clock tick": r"clocks?|tick(s|ing)?",
    "person sneeze": r"sneez(e|es|ing)",
    "helicopter": r"helicopters?|rotors?|blades",
    "chainsaw": r"chainsaws?",
    "rooster": r"roosters?|cocks?|cockerels?|crow(s|ing)?",
    "fire crackling": r"fires?|campfires?|fireplaces?|flames?|burn(s|ing)?|crackl(e|es|ing)",
}

_TEXT = "prediction"  # of a validation; ``mmprefix caption`` calls it caption


def named(caption: str) -> list[str]:
    """Classes that ``caption`` names."""
    return [label for label, words in WORDS.items() if re.search(rf"\b({words})\b", caption.lower())]


def score(captions: Iterable[tuple[str, str]]) -> tuple[float, dict[tuple[str, str], int]]:
    """Score (label, caption) pairs: the share that names the label alone, and the mistakes, (label, named) → count."""
    right, total, mistakes = 0, 0, dict[tuple[str, str], int]()
    for label, caption in captions:
        classes = named(caption)
        total += 1
        right += classes == [label]
        if classes != [label]:
            key = (label, " and ".join(classes) or "nothing")
            mistakes[key] = mistakes.get(key, 0) + 1
    return right / max(1, total), mistakes


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "predictions", type=Path, help="JSON lines with id and the text, as a validation or mmprefix caption writes"
    )
    parser.add_argument("--manifest", type=Path, required=True, help="ESC-10's manifest, for the labels")
    options = parser.parse_args(argv)
    with options.manifest.open(encoding="utf-8") as lines:
        labels = {row["id"]: row["label"] for row in map(json.loads, lines)}
    with options.predictions.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    accuracy, mistakes = score((labels[row["id"]], row[_TEXT if _TEXT in row else "caption"]) for row in rows)
    print(f"{len(rows)} captions, {accuracy:.1%} name the class")
    for (label, classes), count in sorted(mistakes.items(), key=lambda item: -item[1]):
        print(f"  {count} × {label}: named {classes}")


if __name__ == "__main__":
    main()
