"""True and false positives and negatives by label; precision, recall and F1, micro and macro averaged."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass


@dataclass
class Counts:
    """True positives, false positives and false negatives; the last two are fractional where a distance is added."""

    tp: float = 0.0
    fp: float = 0.0
    fn: float = 0.0

    @property
    def figures(self) -> dict[str, float]:
        """precision, recall and f1; each is 0 where it would divide by 0."""
        precision, recall = ratio(self.tp, self.tp + self.fp), ratio(self.tp, self.tp + self.fn)
        return {"precision": precision, "recall": recall, "f1": ratio(2 * precision * recall, precision + recall)}

    @property
    def row(self) -> dict[str, float]:
        """precision, recall, f1, tp, fp and fn."""
        return self.figures | asdict(self)


class LabelCounts(defaultdict[str, Counts]):
    """Counts by label."""

    def __init__(self) -> None:
        super().__init__(Counts)

    def add(self, label: str, tp: float = 0.0, fp: float = 0.0, fn: float = 0.0) -> None:
        """Add to the counts of ``label``."""
        counts = self[label]
        counts.tp += tp
        counts.fp += fp
        counts.fn += fn

    def micro(self) -> Counts:
        """Sum of the counts of all labels."""
        rows = self.values()
        return Counts(sum(row.tp for row in rows), sum(row.fp for row in rows), sum(row.fn for row in rows))

    def macro(self) -> dict[str, float]:
        """Mean precision, recall and F1 over all counted labels."""
        rows = [row.figures for row in self.values()]
        return {name: ratio(sum(row[name] for row in rows), len(rows)) for name in Counts().figures}


def ratio(part: float, whole: float) -> float:
    """Return ``part / whole``, or 0 if ``whole`` is 0."""
    return part / whole if whole else 0.0
