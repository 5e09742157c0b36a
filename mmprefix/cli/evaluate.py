"""``mmprefix evaluate``: score a file of predictions, by whichever program written. No torch is imported.

The format of a line depends on the task: see ``mmprefix.cli.evaluation.caption``, ``slu``, ``detection`` and
``personal``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from mmprefix.cli.evaluation import caption as evaluate_caption
from mmprefix.cli.evaluation import detection as evaluate_detection
from mmprefix.cli.evaluation import personal as evaluate_personal
from mmprefix.cli.evaluation import slu as evaluate_slu
from mmprefix.errors import InputError

TASKS = {
    "caption": evaluate_caption,
    "slu": evaluate_slu,
    "detection": evaluate_detection,
    "personal": evaluate_personal,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmprefix evaluate`` to ``parser``: the common ones, and a group for each task."""
    parser.add_argument("predictions", metavar="PREDICTIONS.jsonl", help="one JSON object a line, as below")
    parser.add_argument(
        "--task", choices=tuple(TASKS), default="caption", help="kind of predictions (default: caption)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object with full precision")
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write a page: figures, DET curve or confusion of intents, the worst and best with picture or sound",
    )
    for task, module in TASKS.items():
        module.add_arguments(parser.add_argument_group(f"--task {task}", module.LINE))


def run(args: argparse.Namespace) -> int:
    """Print the scores; returns 0, or 1 where a requested metric is not available. Raises InputError."""
    for task, module in TASKS.items():
        if task != args.task:
            _refuse(args, task, module.add_arguments)
    if args.html and args.task == "personal":
        raise InputError("--html: --task personal compares users, and draws no page; leave it out")
    return TASKS[args.task].run(args)


def _refuse(args: argparse.Namespace, task: str, add: Callable[[argparse.ArgumentParser], None]) -> None:
    """Raise InputError for an option of ``task``, which is not the task of this run: it would have no effect."""
    parser = argparse.ArgumentParser()
    add(parser)
    for name, default in vars(parser.parse_args([])).items():
        if getattr(args, name) != default:
            raise InputError(f"--{name.replace('_', '-')} belongs to --task {task}; here --task is {args.task}")
