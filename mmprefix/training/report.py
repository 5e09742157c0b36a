"""Report of a validation: figures by kind of input, captions beside references, and signs of a collapse.

The rows of all processes are gathered and each input counts once, so figures do not depend on the number of processes.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from mmprefix.atomic import disk_errors_as_input_errors, write_atomically
from mmprefix.metrics import caption, detection
from mmprefix.metrics.caveats import undefined_metrics, word_notes
from mmprefix.metrics.sentence_encoder import SentenceEncoder, mean_cosines

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = ("bleu_4", "rouge_l", "cider_d", "exact_match", "distinct")
NO_INPUT = "no input"
"""Group of rows that are captions alone, or a prompt and captions."""


@dataclass(frozen=True)
class ValidationRow:
    """One input: its prediction, its references, and what these cost.

    ``nll`` and ``nll_shuffled`` are sums over the references, with the input's own prefix and with another input's.
    ``media`` is the file it was read from, ``group`` the kind of input, ``tokens`` those of the references.
    """

    id: str
    group: str
    media: str
    prediction: str
    references: list[str]
    nll: float
    nll_shuffled: float | None
    tokens: int
    log_odds: float | None = None  # of the word for what is to be detected against the other word


class Report:
    """Report over the rows of one validation, sorted by group and id.

    ``target`` is the word for what is to be detected; None: nothing is. With an ``encoder`` of sentences the figures
    hold ``sbert_sim`` (see ``mmprefix.metrics.sentence_encoder``).
    """

    def __init__(
        self, rows: list[ValidationRow], target: str | None = None, encoder: SentenceEncoder | None = None
    ) -> None:
        self.target = target
        once = {(r.group, r.id, r.media, *r.references): r for r in rows}  # ids are unique in one manifest only
        self.rows = sorted(once.values(), key=lambda r: (r.group, r.id, r.media))
        self.groups: dict[str, list[ValidationRow]] = {}
        for row in self.rows:
            self.groups.setdefault(row.group, []).append(row)
        self._vectors: dict[str, Tensor] | None = None
        if encoder is not None:
            scored = (row for row in self.rows if row.references)
            self._vectors = encoder.embed(text for row in scored for text in (row.prediction, *row.references))
        self.by_group = {name: _figures(rows, target, self._vectors) for name, rows in self.groups.items()}

    @classmethod
    def gather(
        cls, rows: list[ValidationRow], target: str | None = None, encoder: SentenceEncoder | None = None
    ) -> Report:
        """Report over the rows of all processes."""
        if dist.is_available() and dist.is_initialized():
            parts: list[list[ValidationRow]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, rows)
            rows = [row for part in parts for row in part]
        return cls(rows, target, encoder)

    def figures(self) -> dict[str, float]:
        """Figures over all rows and, where there are several kinds of input, for each kind (``image/cider_d``)."""
        if not self.rows:
            return {}
        if len(self.groups) == 1:
            return next(iter(self.by_group.values()))
        apart = {f"{group}/{key}": v for group, figures in self.by_group.items() for key, v in figures.items()}
        return {**_figures(self.rows, self.target, self._vectors), **apart}

    def warnings(self) -> list[str]:
        """Sentences that warn where the model seems to ignore its input, and where figures say nothing."""
        messages = [] if self.target else self._caveats()
        asked = [row.references for row in self.rows if row.log_odds is not None]
        hits = sum(self.target in references for references in asked)
        if asked and hits in (0, len(asked)):
            messages.append(
                f"No eer and auc: {hits} of {len(asked)} references are {self.target!r}; they need both kinds."
            )
        for name, figures in self.by_group.items():
            rows = self.groups[name]
            if len(rows) < 2 or name == NO_INPUT:
                continue
            gain, loss = figures.get("shuffle_gap"), figures["loss"]
            if gain is not None and gain < 0.01 * loss:
                messages.append(
                    f"The model ignores its {name} input: with another input's prefix the loss is "
                    f"{loss + gain:.3f} instead of {loss:.3f}. Train longer, raise the rate, or check the data."
                )
            if figures.get("distinct", 1.0) * len(rows) < 1.5 and len({tuple(r.references) for r in rows}) > 1:
                messages.append(f"The model writes one and the same caption for all {len(rows)} {name} inputs.")
        return messages

    def _caveats(self) -> list[str]:
        """Metrics that are not defined for a group's references, and texts whose words no space parts."""
        scored = {name: [row for row in rows if row.references] for name, rows in self.groups.items()}
        reasons = {name: undefined_metrics([row.references for row in rows]) for name, rows in scored.items() if rows}
        messages = [f"No cider_d for {name}: {why['cider_d']}." for name, why in reasons.items() if why]
        rows = [row for group in scored.values() for row in group]
        notes = word_notes([row.prediction for row in rows], [row.references for row in rows])
        return messages + [f"{note[0].upper()}{note[1:]}." for note in notes]

    def table(self, count: int) -> str:
        """Aligned text: figures of each group, and ``count`` of its captions beside a reference."""
        keys = ["loss", *(("eer", "auc", "exact_match") if self.target else SHOWN), "cider_d_shuffled"]
        keys += [] if self._vectors is None else ["sbert_sim", "sbert_sim_shuffled"]
        titles = ["shuffled" if key.endswith("_shuffled") else key for key in keys]
        lines = [" ".join(["input".ljust(12), "count".rjust(6), *(title.rjust(11) for title in titles)])]
        for name, figures in self.by_group.items():
            cells = (f"{figures.get(key, float('nan')):11.3f}" for key in keys)
            lines.append(" ".join([name.ljust(12), f"{len(self.groups[name]):6}", *cells]))
        both = "" if self._vectors is None else ", and behind it sbert_sim,"
        lines.append(f"(shuffled: cider_d{both} when each input is given another's caption)")
        for name, rows in self.groups.items():
            for row in random.Random(0).sample(rows, min(count, len(rows))):
                lines.append(f"{name} {row.id}\n    wrote      {row.prediction}")
                lines.append(f"    reference  {row.references[0] if row.references else ''}")
        return "\n".join(lines)

    def samples(self, count: int = 3) -> list[dict[str, str]]:
        """First ``count`` inputs of each kind: name of the file, what was written, a reference."""
        rows = [row for group in self.groups.values() for row in group[:count]]
        return [
            {
                "input": Path(row.media).name or row.id,
                "written": row.prediction,
                "reference": row.references[0] if row.references else "",
            }
            for row in rows
        ]

    def write(self, trainer: Any, stage: str) -> None:
        """Write captions beside references, as JSON lines and as a table, to the run's log directory and its loggers.

        The first process writes, but all must call this: they agree on the directory.
        """
        directory = Path(trainer.log_dir or trainer.default_root_dir) / "captions"
        if not self.rows or not trainer.is_global_zero:
            return
        name = f"{stage}-step{trainer.global_step}"
        with disk_errors_as_input_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in self.rows)
        write_atomically(directory / f"{name}.jsonl", lambda file: file.write_text(lines, encoding="utf-8"))
        write_atomically(
            directory / f"{name}.txt", lambda file: file.write_text(self.table(50) + "\n", encoding="utf-8")
        )
        for logger in trainer.loggers:
            if hasattr(logger.experiment, "add_text"):
                logger.experiment.add_text(f"{stage}/captions", self._markdown(), trainer.global_step)

    def _markdown(self, count: int = 20) -> str:
        rows = [r for group in self.groups.values() for r in group[:count]]
        body = [f"| {r.id} | {r.prediction} | {' / '.join(r.references)} |" for r in rows]
        return "\n".join(["| id | written | references |", "|---|---|---|", *body])


def _figures(
    rows: list[ValidationRow], target: str | None = None, vectors: dict[str, Tensor] | None = None
) -> dict[str, float]:
    tokens = max(1, sum(r.tokens for r in rows))
    figures = {"loss": sum(r.nll for r in rows) / tokens}
    pairs = [r for r in rows if r.nll_shuffled is not None]
    if pairs:
        tokens = max(1, sum(r.tokens for r in pairs))
        figures["shuffle_gap"] = sum((r.nll_shuffled or 0.0) - r.nll for r in pairs) / tokens
    scored = [r for r in rows if r.references]
    labels = [target in r.references for r in scored if r.log_odds is not None]
    if len(set(labels)) == 2:
        odds = [r.log_odds for r in scored if r.log_odds is not None]
        figures.update({k: float(v) for k, v in detection(odds, labels).items() if k in ("eer", "threshold", "auc")})
    if scored:
        predictions, references = [r.prediction for r in scored], [r.references for r in scored]
        scores, undefined = caption(predictions, references), undefined_metrics(references)
        figures.update({name: value for name, value in scores.items() if name not in undefined})
        others = _shuffled(predictions) if not undefined else None
        if others is not None:
            figures["cider_d_shuffled"] = float(caption(others, references)["cider_d"])
        if vectors is not None:
            figures["sbert_sim"] = mean(mean_cosines(predictions, references, vectors))
            if others is not None:
                figures["sbert_sim_shuffled"] = mean(mean_cosines(others, references, vectors))
    return figures


def _shuffled(predictions: list[str]) -> list[str] | None:
    """Another input's caption for each input: only what does not depend on the input is left. None for one input."""
    if len(predictions) < 2:
        return None
    shift = random.Random(0).randrange(1, len(predictions))
    return predictions[shift:] + predictions[:shift]
