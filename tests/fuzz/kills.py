"""Kill -9, SIGTERM and SIGINT at points all over fit, encode, save, webdataset and two fillers of one store.

    python tests/fuzz/kills.py [--points 12] [--programs fit encode ...] [--signals SIGTERM ...] [--out kills.json]

Every run is a process of its own, forked from one that has imported the package, and gets a real signal after a share
of the time that an uninterrupted run takes. What is left is checked with other libraries, the run is continued, and the
result is compared with that of the uninterrupted run, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
import webdataset
from safetensors.torch import load_file

from mmprefix import load
from mmprefix.cli.main import main as mmprefix
from mmprefix.cli.training import train  # noqa: F401
from mmprefix.features import encode
from mmprefix.interrupt import Stopped, stop_signals
from tiny.captioning_system import CaptioningSystem, build
from tiny.forked import Forked

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CODES = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130, -2}}  # negative: before it began
ROWS = 12  # of the training data


@dataclass
class Outcome:
    """Outcome of one interrupted run: its exit code, those of the runs after it, and what they left."""

    program: str
    signal: str
    point: int
    code: int
    others: list[int]
    lost: int
    doubled: int
    same: bool
    faults: list[str] = field(default_factory=list)


class Program(ABC):
    """A program to interrupt: ``work`` runs it below a folder, ``result`` are the bits that it leaves in the end."""

    name: ClassVar[str]

    def __init__(self, system: CaptioningSystem, root: Path) -> None:
        self.system, self.root = system, root

    def prepare(self, folder: Path) -> None:  # noqa: B027 (most need nothing)
        """Make what stands in ``folder`` before the first run."""

    @abstractmethod
    def work(self, folder: Path) -> int:
        """Run the program below ``folder`` to its end, or on from where it was; returns the exit code."""

    @abstractmethod
    def result(self, folder: Path) -> Any:
        """Bits that the program leaves."""

    def check(self, folder: Path) -> list[str]:
        """Faults of what an interrupted run has left."""
        return []

    def rows(self, folder: Path) -> list[str]:
        """Rows in what the program leaves, by name."""
        return []


class Fit(Program):
    """Two epochs of four steps with dropout and validation; a checkpoint at each epoch, and of a signal's moment."""

    name = "fit"

    def work(self, folder: Path) -> int:
        recipe = self.system.recipe(self.system.config(dropout=0.3), folder)
        last = folder / "checkpoints" / "last.ckpt"
        more = [f"--ckpt_path={last}"] if last.exists() else []
        return mmprefix(["fit", "--config", str(recipe), "--save_to", str(folder / "model"), *more])

    def result(self, folder: Path) -> Any:
        return (folder / "model" / "model.safetensors").read_bytes()

    def check(self, folder: Path) -> list[str]:
        last = folder / "checkpoints" / "last.ckpt"
        if last.exists():
            torch.load(last, weights_only=True)
        return []


class Encode(Program):
    """Features of 12 inputs in two stores; each batch of one input is a shard."""

    name = "encode"

    def prepare(self, folder: Path) -> None:
        self.system.recipe(self.system.config(), folder)

    def work(self, folder: Path) -> int:
        encode.SECONDS = 0.0
        words = ["encode", "--config", str(folder / "recipe.yaml"), "--cache", str(folder / "cache")]
        return mmprefix([*words, "--cache_dtype=float32", "--data.eval_batch_size=1", *self.more(folder)])

    def more(self, folder: Path) -> list[str]:
        """More options of the command."""
        return []

    def entries(self, folder: Path) -> list[tuple[str, bytes]]:
        """Key and bits of every row of every shard, as safetensors reads them."""
        rows: list[tuple[str, bytes]] = []
        for file in sorted((folder / "cache").rglob("*.safetensors")):
            shard = load_file(file)
            ends = [0, *shard["ends"].tolist()]
            for row, key in enumerate(shard["keys"].tolist()):
                parts = shard["frames"][ends[row] : ends[row + 1]], shard["pooled"][row]
                name = f"{file.parent.name} {bytes(key).hex()}"
                rows.append((name, b"".join(part.numpy().tobytes() for part in parts)))
        return rows

    def result(self, folder: Path) -> Any:
        return sorted(self.entries(folder))

    def check(self, folder: Path) -> list[str]:
        self.entries(folder)  # every shard is whole
        return []

    def rows(self, folder: Path) -> list[str]:
        left = [str(file) for end in ("*.tmp", "*.txt", "*.new") for file in folder.rglob(end)]
        assert not left, left
        return [name for name, _ in self.entries(folder)]


class WebDataset(Encode):
    """Tars of two rows from a store that is filled."""

    name = "webdataset"

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        shutil.copytree(self.filled, folder / "cache")

    @property
    def filled(self) -> Path:
        """Store with all features."""
        source = self.root / "filled"
        if not source.exists():
            super().prepare(source)
            assert Forked(partial(Encode(self.system, self.root).work, source), source / "log").wait() == 0
        return source / "cache"

    def more(self, folder: Path) -> list[str]:
        return ["--to=webdataset", f"--out={folder / 'shards'}", "--shard_rows=2"]

    def work(self, folder: Path) -> int:
        if (folder / "shards" / "index.json").exists():
            return 0  # all was written when the signal came
        return super().work(folder)

    def result(self, folder: Path) -> Any:
        return {file.name: file.read_bytes() for file in sorted((folder / "shards").iterdir())}

    def check(self, folder: Path) -> list[str]:
        self.ids(folder)
        return []

    def ids(self, folder: Path) -> list[str]:
        """Names of the rows of all tars that are there, as webdataset reads them."""
        files = [str(file) for file in sorted((folder / "shards").glob("*.tar"))]
        rows = webdataset.WebDataset(files, shardshuffle=False, empty_check=False) if files else []  # pyright: ignore
        return [f"{Path(row['__url__']).name[:5]} {json.loads(row['json'])['id']}" for row in rows]

    def rows(self, folder: Path) -> list[str]:
        return self.ids(folder)


class Save(Program):
    """A model that is saved eight times over; between any two steps there is a whole one, old or new."""

    name = "save"
    versions = 8

    def prepare(self, folder: Path) -> None:
        source = self.root / "fitted"
        if not source.exists():
            source.mkdir()
            assert Forked(partial(Fit(self.system, self.root).work, source), source / "log").wait() == 0
        shutil.copytree(source / "model", folder / "model")

    def work(self, folder: Path) -> int:
        try:
            with stop_signals(), torch.no_grad():
                predictor = load(folder / "model", device="cpu")
                for version in range(1, self.versions + 1):
                    for tensor in predictor.model.trained.values():
                        tensor.fill_(version)
                    predictor.save(folder / "model")
        except Stopped as stop:
            return stop.exit_code
        return 0

    def result(self, folder: Path) -> Any:
        files = [file for file in folder.rglob("*") if file.is_file() and file.name != "log"]
        return {str(file.relative_to(folder)): file.read_bytes() for file in files}

    def check(self, folder: Path) -> list[str]:
        def opens() -> int:
            load(folder / "model", device="cpu")  # compares the hash of the tensors
            return 0

        values = load_file(folder / "model" / "model.safetensors").values()
        whole = Forked(opens, folder / "log").wait() == 0
        versions = {float(value.mean()) for value in values} if whole else set[float]()
        before = load_file(self.root / "fitted" / "model" / "model.safetensors").values()
        whole = len(versions) == 1 or versions == {float(value.mean()) for value in before}
        return [] if whole else [f"the model that was left does not open, or is mixed of {sorted(versions)}"]


class TwoFillers(Encode):
    """Two processes that fill one store: one is interrupted, the other goes on to the end."""

    name = "two fillers"
    processes = 2


def interrupt(program: Program, number: signal.Signals, point: int, after: float) -> tuple[Path, Outcome]:
    """Interrupt a run of ``program`` after so many seconds, and run it to its end then."""
    folder = Path(tempfile.mkdtemp(prefix=f"{program.name.replace(' ', '-')}-", dir=program.root))
    program.prepare(folder)
    runs = [Forked(partial(program.work, folder), folder / "log") for _ in range(getattr(program, "processes", 1))]
    time.sleep(max(0.0, runs[0].began + after - time.monotonic()))
    runs[0].send_signal(number)
    code, *others = [run.wait() for run in runs]
    outcome = Outcome(program.name, number.name, point, code, others, 0, 0, False)
    if code not in CODES[number] | {0}:
        outcome.faults.append(f"exit code {code}")
    outcome.faults += program.check(folder)
    outcome.others.append(Forked(partial(program.work, folder), folder / "log").wait())
    if any(outcome.others):
        outcome.faults.append(f"exit codes of the others {outcome.others}")
    if "Traceback" in (folder / "log").read_text(errors="replace"):
        outcome.faults.append("a traceback")
    return folder, outcome


def study(program: Program, points: int, signals: Sequence[signal.Signals] = SIGNALS) -> list[Outcome]:
    """Outcomes of ``program`` for each signal at each of so many points of its time."""
    whole = program.root / f"whole-{program.name}"
    whole.mkdir()
    program.prepare(whole)
    if isinstance(program, WebDataset):
        assert program.filled.exists()
    run = Forked(partial(program.work, whole), whole / "log")
    assert run.wait() == 0, (whole / "log").read_text()
    seconds, expected, rows = time.monotonic() - run.began, program.result(whole), program.rows(whole)
    outcomes: list[Outcome] = []
    for turn, number in enumerate(signals):  # their points lie between each other
        for point in range(points):
            share = (point + (turn + 0.5) / len(signals)) / points
            folder, outcome = interrupt(program, number, point, seconds * share)
            if not outcome.faults:
                after = program.rows(folder)
                outcome.lost = len(set(rows) - set(after))
                outcome.doubled = len(after) - len(set(after))
                outcome.same = program.result(folder) == expected
            outcomes.append(outcome)
            if outcome.same and not outcome.faults:
                shutil.rmtree(folder)
            else:
                sys.stdout.write(f"{folder}: {outcome}\n{(folder / 'log').read_text(errors='replace')[-2000:]}\n")
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown table: a line a program and signal."""
    head = ["program", "signal", "points", "exit codes", "of the others", "lost", "doubled", "same bits"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for program, number in dict.fromkeys((outcome.program, outcome.signal) for outcome in outcomes):
        mine = [outcome for outcome in outcomes if (outcome.program, outcome.signal) == (program, number)]
        codes = ", ".join(
            f"{code} ({sum(outcome.code == code for outcome in mine)})" for code in sorted({o.code for o in mine})
        )
        others = ", ".join(map(str, sorted({code for outcome in mine for code in outcome.others})))
        lost, doubled = sum(outcome.lost for outcome in mine), sum(outcome.doubled for outcome in mine)
        same = f"{sum(outcome.same for outcome in mine)} of {len(mine)}"
        cells = [program, number, len(mine), codes, others, lost, doubled, same]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


PROGRAMS: dict[str, type[Program]] = {kind.name: kind for kind in (Fit, Encode, Save, WebDataset, TwoFillers)}


def main(words: Sequence[str] | None = None) -> int:
    """Run the study, print its table; exit code 1 where anything was lost, doubled, left or not the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=list(PROGRAMS))
    parser.add_argument("--signals", nargs="+", default=[number.name for number in SIGNALS])
    parser.add_argument("--out", type=Path, help="JSON file for the outcomes")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    os.environ["MMPREFIX_ALLOW"] = "tiny"
    root = Path(tempfile.mkdtemp(prefix="kills-"))
    (root / "system").mkdir()
    build(root / "system", steps=20)
    signals = [signal.Signals[name] for name in options.signals]
    outcomes: list[Outcome] = []
    for name in options.programs:
        outcomes += study(PROGRAMS[name](CaptioningSystem(root / "system"), root), options.points, signals)
        sys.stderr.write(table(outcomes[-len(signals) * options.points :]) + "\n")
    sys.stdout.write(table(outcomes) + "\n")
    if options.out:
        options.out.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    bad = [outcome for outcome in outcomes if outcome.faults or outcome.lost or outcome.doubled or not outcome.same]
    if not bad:
        shutil.rmtree(root)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
