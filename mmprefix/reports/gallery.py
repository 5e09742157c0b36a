"""Gallery: the worst and the best rows and some by chance, each with its picture or sound, within a budget of bytes."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mmprefix.errors import InputError
from mmprefix.reports.page import escape
from mmprefix.reports.rows import ScoredText
from mmprefix.reports.thumbnails import thumbnail

MOST_REFERENCES = 5


class Budget:
    """Bytes that pages may still take; ``left_out`` counts cards for which there was no room."""

    def __init__(self, size: float) -> None:
        self.size = size
        self.left_out = 0

    def takes(self, text: str) -> bool:
        """Take ``text`` where there is room for it."""
        size = len(text.encode())
        if size > self.size:
            self.left_out += 1
            return False
        self.size -= size
        return True


def choose(rows: Sequence[ScoredText], count: int) -> dict[str, list[ScoredText]]:
    """Up to ``count`` rows a title, no row twice: the worst, the best, and some of the others by chance."""
    known = sorted((row for row in rows if row.score is not None), key=lambda row: row.score or 0.0)
    if len({row.score for row in known}) < 2:
        known = []  # none is better than another
    worst = known[: min(count, len(known) // 2)]
    best = known[::-1][: min(count, len(known) - len(worst))]
    chosen = {id(row) for row in (*worst, *best)}
    others = [row for row in rows if id(row) not in chosen]
    drawn = random.Random(0).sample(others, min(count, len(others)))
    titles = {"Worst": worst, "Best": best, "By chance": drawn}
    return {title: chosen for title, chosen in titles.items() if chosen}


def gallery(rows: Sequence[ScoredText], count: int, budget: Budget) -> str:
    """Cards of ``choose`` under their titles; what the budget has no room for is left out and counted."""
    parts = []
    chosen = choose(rows, count)
    cards: dict[str, list[str]] = {title: [] for title in chosen}
    for place in range(count):  # in turns, so that a small budget holds some of each
        for title, listed in chosen.items():
            if place < len(listed):
                made = card(listed[place])
                if budget.takes(made):
                    cards[title].append(made)
    for title, made in cards.items():
        if made:
            parts.append(f'<h3>{escape(title)}</h3><div class="grid">{"".join(made)}</div>')
    return "".join(parts)


def card(row: ScoredText) -> str:
    """Figure of one row: input, what was written, references, score."""
    try:
        shown = thumbnail(row.media) if row.media else ""
    except (InputError, OSError, ValueError) as error:
        shown = f'<div class="soft">{escape(error)}</div>'
    question = f'<p class="soft">{escape(row.question[1])}</p>' if row.question else ""
    references = "".join(f"<li>{escape(text)}</li>" for text in row.references[:MOST_REFERENCES])
    more = len(row.references) - MOST_REFERENCES
    references += f"<li>and {more} more</li>" if more > 0 else ""
    score = "" if row.score is None else f"{row.metric} {row.score:.2f} · "
    name = row.id.partition(" [")[0] if row.question else row.id
    wrote = escape(row.prediction) if row.prediction else "<em>nothing</em>"
    return (
        f'<article class="card">{shown}<div>{question}<p class="wrote">{wrote}</p><ul>{references}</ul>'
        f'<p class="soft">{escape(score)}{escape(name)}</p></div></article>'
    )
