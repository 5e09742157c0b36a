"""Clips written to files, and their data module: pictures of the frames, and a manifest for each task and split."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np

from mmprefix.errors import require_one_of
from mmprefix.world.clip_texts import DESCRIBE, INSTRUCTIONS, NOTE, describe, notes, plan, questions
from mmprefix.world.clips import MovingScene, Split, draw_frames, sample_clips
from mmprefix.world.made_data import MadeData
from mmprefix.world.make_once import make_once

Task = Literal["note", "describe", "answer", "plan"]
TASKS: tuple[Task, ...] = get_args(Task)
SPLITS: tuple[Split, ...] = get_args(Split)


class ClipRow(TypedDict):
    """Fields of a manifest row: frames in order, the instruction, twice, one caption, and what is wanted."""

    video: list[str]
    instruction: str
    prompt: str
    captions: list[str]
    wanted: str


def make_clips(directory: str | Path, *, train: int = 1500, val: int = 60, test: int = 200, seed: int = 0) -> Path:
    """Write so many clips of each split to ``directory``, and return it.

    A manifest TASK_SPLIT.jsonl has ``id``, ``video`` (a list of pictures), ``instruction``, ``prompt`` (the same),
    ``captions`` (one), ``wanted`` and ``split``. Of each clip there is one row with its key words, one to describe a
    moment of it, of which the video is that one picture, two of questions to answer, and one for each thing that can be
    wanted, with its plan. A directory that was finished with the same numbers and tasks stays as it is; else it is made
    anew.

    Raises InputError when ``directory`` holds other files.
    """
    counts = {"train": train, "val": val, "test": test}

    def write(fresh: Path) -> None:
        for split in SPLITS:
            rows = list(_write(islice(sample_clips(seed, split), counts[split]), fresh, split))
            for task in TASKS:
                lines = (json.dumps(row) + "\n" for kind, row in rows if kind == task)
                (fresh / f"{task}_{split}.jsonl").write_text("".join(lines), encoding="utf-8")

    plan = {**counts, "seed": seed, "tasks": [*TASKS]}
    return make_once(directory, "clips.json", plan, write, what="clips")


def _write(clips: Iterator[MovingScene], folder: Path, split: Split) -> Iterator[tuple[Task, dict[str, object]]]:
    """Write the frames of each clip to ``folder/split``, and yield its rows, each with its task."""
    (folder / split).mkdir()
    for number, clip in enumerate(clips):
        stem = f"{split}/{number:05d}"
        files = [f"{stem}-{index}.png" for index, _ in enumerate(draw_frames(clip))]
        for file, frame in zip(files, draw_frames(clip), strict=True):
            frame.save(folder / file, compress_level=1)
        for task, row in rows_of(clip, files):
            yield task, {"id": f"{split}-{number:05d}-{row['wanted']}", **row, "split": split}


def rows_of(clip: MovingScene, files: list[str]) -> Iterator[tuple[Task, ClipRow]]:
    """Rows of ``clip``, whose frames are in ``files``, each with its task; wordings are drawn by the clip's seed."""
    rng = np.random.default_rng([clip.seed, 3])
    moment = int(rng.integers(len(clip.changes) + 1))
    yield "note", _row(files, NOTE, notes(clip, by_place=True), "note")
    yield "describe", _row(files[2 * moment : 2 * moment + 1], DESCRIBE[rng.integers(2)], describe(clip, moment), "one")
    asked = list(questions(clip))
    for index in rng.permutation(len(asked))[:2]:
        question, answer = asked[index]
        yield "answer", _row(files, question, answer, f"answer{index}")
    for wanted, wordings in INSTRUCTIONS.items():
        yield "plan", _row(files, wordings[rng.integers(len(wordings))], str(plan(clip, wanted)), wanted)


def _row(files: list[str], instruction: str, target: str, wanted: str) -> ClipRow:
    return ClipRow(video=files, instruction=instruction, prompt=f"{instruction}:", captions=[target], wanted=wanted)


class ClipData(MadeData):
    """Clips, written to ``directory`` as png and manifests, and read like any other data.

    Args:
        task: "note" (a clip and its key words), "describe" (a picture and its caption), "answer" (questions about a
            clip) or "plan".
        directory: folder of manifests and pictures, reused if made with the same numbers.
        clips: training clips; there are one, one, two or three rows of each, by task.
        val_clips: validation clips.
        test_clips: test clips.
        batch_size: rows a batch in training.
        eval_batch_size: rows a batch in evaluation; None: as in training.
        bucket: rows of like length share a batch; of these texts the length tells how much happened, so that batches of
            one length pull the model to and fro.
        num_workers: processes that read files; 0: only the main process.
        seed: seed of the clips and of their order.
    """

    def __init__(  # noqa: PLR0913 (options of a recipe)
        self,
        *,
        task: Task = "plan",
        directory: str = "runs/embodied_world/data",
        clips: int = 1500,
        val_clips: int = 60,
        test_clips: int = 200,
        batch_size: int = 32,
        eval_batch_size: int | None = 60,
        bucket: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        require_one_of("data.task", task, TASKS)
        batches: dict[str, Any] = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "seed": seed}
        batches |= {"bucket": bucket, "num_workers": num_workers}
        super().__init__(directory, [f"{task}_{split}" for split in SPLITS], **batches)
        self.counts = {"train": clips, "val": val_clips, "test": test_clips}

    def prepare_data(self) -> None:
        """Make the clips that are missing; Lightning calls this in one process only."""
        make_clips(self.directory, **self.counts, seed=self.seed)
