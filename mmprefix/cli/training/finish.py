"""End of a training: the best state is taken and saved, or the way to go on is named."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from mmprefix.data.pairs import PairData
from mmprefix.errors import InputError, NoRowsError
from mmprefix.inference.predictor import Predictor
from mmprefix.saved_model import ModelSettings, TrainingRecord, load_trained, require_writable, task_from_dict
from mmprefix.training.best_checkpoint import BestCheckpoint
from mmprefix.training.checkpoint_io import AtomicCheckpointIO
from mmprefix.training.task import PrefixTask

log = logging.getLogger(__name__)


def require_free(directory: Path, *, overwrite: bool) -> None:
    """Raise InputError for a place that a model cannot be saved to, or that holds one which may not be replaced."""
    require_writable(directory)
    if not overwrite and directory.exists() and any(directory.iterdir()):
        raise InputError(f"save_to {directory}: holds a model; --overwrite replaces it, --save_to gives another folder")


def take_best(task: PrefixTask, trainer: Trainer, best: BestCheckpoint | None) -> None:
    """Put the trained tensors of the best validation into ``task``, where there was one."""
    if best is None or best.value is None:
        log.info("no validation tells a best state; the last one is taken")
        return
    task.samples = best.samples
    log.info("best validation: step %d, %s %.4f", best.step, best.monitor, best.value)
    if best.step != trainer.global_step:
        state = AtomicCheckpointIO().load_checkpoint(best.file)["state_dict"]
        load_trained(task.model, {name.removeprefix("model."): tensor for name, tensor in state.items()}, best.file)


def test_figures(task: PrefixTask, trainer: Trainer, data: LightningDataModule) -> dict[str, float] | None:
    """Figures of a test after the training; None, with a warning, where the data has no row to test on."""
    try:
        trainer.test(task, datamodule=data, verbose=False)
    except NoRowsError as error:
        log.warning("not tested: %s", error)
        return None
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def save_trained(
    directory: Path,
    task: PrefixTask,
    data: LightningDataModule | None,
    *,
    record: tuple[str, dict[str, float]],
    options: Any,
) -> None:
    """Save the model with its decoding options, data and task, and what it was measured to be.

    ``record``: val or test, and all figures of the run. ``options``: of the run, for the model and its card.
    """
    stage, figures = record
    pairs = data if isinstance(data, PairData) else None
    names = [type(data).__name__] if pairs is None else pairs.source_names()
    settings: dict[str, Any] = task.task_settings() | ({} if pairs is None else pairs.task_settings())
    own = {name.removeprefix(f"{stage}/"): value for name, value in figures.items() if name.startswith(f"{stage}/")}
    kept = ModelSettings(
        task.options,
        "" if pairs is None else pairs.prompt,
        TrainingRecord(names, stage, own, task.samples),
        task=task_from_dict(settings),
        license=options.license,
        language=options.language,
    )
    Predictor(task.model, kept).save(directory, pack=options.pack, pack_limit=options.pack_limit)
    log.info("saved the model: %s", directory, extra={"result": True})


def command_to_resume(words: Sequence[str], checkpoint: Path) -> str:
    """Shell command of a run with ``words`` that goes on from ``checkpoint``."""
    kept, rest = list[str](), iter(words)
    for word in rest:
        flag, equals, _ = word.partition("=")
        if flag == "--ckpt_path" and not equals:
            next(rest, None)
        elif flag not in ("--ckpt_path", "--overwrite"):
            kept.append(word)
    return shlex.join(["mmprefix", *kept, "--ckpt_path", str(checkpoint)])
