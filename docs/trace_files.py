"""Count the files of this project that one caption and one training step pass through.

    python docs/trace_files.py [--json]

A file counts when a function of it runs, in whatever thread, between the call and its result: ``model("sound.wav")`` of
a saved model, and from the end of one training batch to the end of the next (loading included). Both use the embedded
default, trained for a few steps in a temporary folder.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

import mmprefix

ROOT = Path(mmprefix.__file__).resolve().parents[1]
FIT = (
    "fit --config recipes/quickstart.yaml --data.scenes 64 --data.val_scenes 8 --data.test_scenes 8 "
    "--trainer.max_epochs 1 --trainer.max_steps 3 --data.num_workers 0 --test_after_fit false --trainer.logger false "
    "--trainer.enable_progress_bar false --trainer.enable_model_summary false --trainer.accelerator cpu"
)


@cache
def name_in_project(file: str) -> str | None:
    """Path from the root of a file of the project, None for any other; asked for at every call of a function."""
    path = Path(file)
    if not path.is_absolute() or not path.resolve().is_relative_to(ROOT):
        return None
    name = str(path.resolve().relative_to(ROOT))
    return None if name.startswith((".", "docs", "tests")) else name


@contextmanager
def traced(files: set[str]) -> Iterator[None]:
    """Adds to ``files`` every file of the project whose functions are called within, path from the root."""

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and (name := name_in_project(frame.f_code.co_filename)):
            files.add(name)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # pyright: ignore[reportArgumentType]


class TraceStep(Callback):
    """Traces from the end of the first training batch to the end of the second."""

    files: set[str] = set()  # noqa: RUF012 (one run, one set)

    def on_train_batch_end(self, *_: Any) -> None:
        """Starts after the first batch, stops after the second."""
        if not hasattr(self, "trace"):
            self.trace = traced(self.files)
            self.trace.__enter__()
        elif self.trace is not None:
            self.trace.__exit__(None, None, None)
            self.trace = None


def count_files(folder: Path, fit: Callable[[list[str]], int]) -> dict[str, list[str]]:
    """The files that one training step and one caption pass through; trains and saves a model in ``folder``."""
    sys.path.insert(0, str(Path(__file__).parent))
    from trace_files import TraceStep as Imported  # the class that the recipe's path leads to

    words = [*FIT.split(), "--data.directory", str(folder / "data"), "--data.samples", str(folder / "samples")]
    words += ["--save_to", str(folder / "model"), "--trainer.default_root_dir", str(folder / "run")]
    if code := fit([*words, "--trainer.callbacks+", "trace_files.TraceStep", "--allow", "trace_files"]):
        raise SystemExit(code)
    sound = next(iter(sorted((folder / "samples").glob("*.wav"))))
    model, caption = mmprefix.load(folder / "model"), set[str]()
    with traced(caption):
        model(str(sound))
    return {"caption": sorted(caption), "training step": sorted(Imported.files)}


def main() -> None:
    """Prints both lists, or one JSON object."""
    from mmprefix.cli.main import main as fit

    with tempfile.TemporaryDirectory() as folder:
        files = count_files(Path(folder), fit)
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps(files, indent=2) + "\n")
        return
    for name, passed in files.items():
        sys.stdout.write(f"{name}: {len(passed)} files\n" + "".join(f"  {file}\n" for file in passed))


if __name__ == "__main__":
    main()
