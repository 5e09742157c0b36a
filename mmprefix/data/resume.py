"""Position of a training run in its data: saved with each checkpoint, and where a resumed run goes on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from lightning.pytorch import Trainer
from torch.utils.data import Sampler

from mmprefix.data.histories import earlier_texts
from mmprefix.data.manifest import Example
from mmprefix.data.samplers import BatchRows
from mmprefix.errors import InputError

log = logging.getLogger(__name__)
HISTORIES, DROPOUT = "data.histories", "data.history_dropout"
_LATER = (HISTORIES, DROPOUT)  # of a fingerprint; checkpoints of earlier versions have none of them


class Epochs(Protocol):
    """Batches, epoch after epoch, that can be started anywhere."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def set_epoch(self, epoch: int, skip: int = 0) -> None: ...


class ResumingSampler(Sampler[BatchRows]):
    """``sampler``, set at each start of an epoch to the position that the run is really at.

    ``done`` returns the number of batches this run was trained on, over all epochs and restarts; ``origin`` is the
    epoch, batch and ``done`` to count from. ``limit`` is the number of batches that a run takes of each epoch. Counting
    trained batches, not started epochs, makes the order independent of where in its own loop a trainer starts again: a
    checkpoint from an epoch's end can lead Lightning to number the next epoch one too high.
    """

    def __init__(
        self, sampler: Epochs, done: Callable[[], int], limit: int, origin: tuple[int, int, int] = (0, 0, 0)
    ) -> None:
        self.sampler, self.done, self.limit, self.origin = sampler, done, limit, origin

    def __len__(self) -> int:
        return len(self.sampler)

    def position(self) -> tuple[int, int]:
        """Epoch that the run is in, and number of its batches that are done."""
        epoch, batch, done = self.origin
        since = max(0, self.done() - done)  # a trainer may ask before it has restored its own count
        more, batch = divmod(batch + since, self.limit)
        return epoch + more, batch

    def __iter__(self) -> Iterator[BatchRows]:
        self.sampler.set_epoch(*self.position())
        return iter(self.sampler)


class RunPosition:
    """Epoch and batch that a run is at, with a fingerprint of all that the order of its batches follows from."""

    def __init__(self) -> None:
        self._sampler: ResumingSampler | None = None
        self._saved: dict[str, Any] = {}  # state of the checkpoint that is resumed, until training starts
        self._fingerprint: dict[str, Any] = {}
        self._files: dict[str, str | None] = {}

    def sampler(
        self, batches: Epochs, trainer: Trainer, fingerprint: dict[str, Any], files: dict[str, str | None] | None = None
    ) -> ResumingSampler:
        """``batches`` from where the run of ``trainer`` stands, or where its checkpoint was taken.

        ``files`` are those of entries of the fingerprint, for messages.

        Raises InputError for a checkpoint within an epoch whose batches cannot be made again.
        """
        progress, limit = trainer.fit_loop.epoch_loop.batch_progress, trainer.limit_train_batches
        limit = min(len(batches), limit) if isinstance(limit, int) else int(len(batches) * (limit or 0.0))
        self._fingerprint, self._files = fingerprint, files or {}
        self._sampler = ResumingSampler(
            batches, lambda: progress.state_dict()["total"]["processed"], max(1, limit), self._start()
        )
        return self._sampler

    def state_dict(self) -> dict[str, Any]:
        """Epoch, batches of it that are done, batches done in all, and the fingerprint of their order."""
        if self._sampler is None:
            return {}
        epoch, batches = self._sampler.position()
        return {"epoch": epoch, "batches": batches, "total": self._sampler.done(), "content": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next training go on where ``state`` was saved.

        Raises InputError for a state that no run was in.
        """
        numbers = [state.get(name) for name in ("epoch", "batches", "total")] if state else []
        content = state.get("content", {}) if state else {}
        if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(content, dict):
            raise InputError("the checkpoint does not say where in its data the run was; it was changed")
        self._saved = state

    def _start(self) -> tuple[int, int, int]:
        """Epoch, batches of it that are done, batches done in all."""
        saved, self._saved = self._saved, {}
        if not saved:
            return 0, 0, 0
        before, now = saved["content"], self._fingerprint
        compared = [name for name in now if name in before or name not in _LATER]
        changed = [self._change(name, before) for name in compared if before.get(name) != now[name]]
        if changed and saved["batches"]:
            raise InputError(
                f"the checkpoint was taken after {saved['batches']} batches of an epoch whose order cannot be made "
                f"again: {'; '.join(changed)}; give what was, or a checkpoint from an epoch's end"
            )
        if changed:
            log.warning("the run goes on with other data than before its checkpoint: %s", "; ".join(changed))
        return saved["epoch"], saved["batches"], saved["total"]

    def _change(self, name: str, before: dict[str, Any]) -> str:
        file = self._files.get(name)
        return (
            f"{name} {file}: was {before.get(name)}, is {self._fingerprint[name]}"
            if file
            else (f"{name} was {before.get(name)}, is {self._fingerprint[name]}")
        )


def histories_fingerprint(histories: Iterable[Sequence[str]]) -> str:
    """Number of texts and a digest of several users' or rows' earlier texts: changes with any of them."""
    digest, count = hashlib.sha256(), 0
    for texts in histories:
        count += len(texts)
        digest.update(repr(tuple(texts)).encode())
    return f"{count} texts ({digest.hexdigest()[:16]})" if count else "no text"


def order_fingerprint(examples: Sequence[Example], world: int, options: dict[str, Any]) -> dict[str, Any]:
    """Plain data that changes whenever the batches of a training on ``examples`` would be others.

    ``world`` is the number of processes, ``options`` those options of the data module that the order follows from.
    """
    content = "\n".join(f"{row.line}\t{row.id}\t{row.captions}{_contexts(row)}" for row in examples)
    return {
        "rows": len(examples),
        "content": hashlib.sha256(content.encode()).hexdigest()[:16],
        "processes": world,
        HISTORIES: histories_fingerprint(map(earlier_texts, examples)),
        **{f"data.{name}": value for name, value in options.items()},
    }


def _contexts(row: Example) -> str:
    return f"\t{(row.context, *row.contexts)}" if row.context else ""
