"""Many threads on one Predictor: every call gets its own answer or its own error, and memory stays where it is.

    python -m benchmarks.studies.threads [runs/quickstart] [--seconds 60] [--threads 16]

Each thread calls the model at random with single files, lists, bytes, beams, seeds, prompts, and with inputs that are
missing, broken or of another kind; answers and errors are compared with those of the same call before the threads
began. Prints a table, and exits with 1 for a wrong answer, a wrong error, or memory that moves by more than 20 MB after
the first ten seconds (a sixth of a shorter run).

"In use" is what glibc has handed out before the threads began and after they ended: the program keeps nothing where the
two are alike. What moves between is per thread, until it ends: buffers of MKL and oneDNN (about 2 MB at these sizes),
and free space in the thread's arena. ``--one-arena`` lets all threads share one, which leaves the free space out.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import mmprefix
from mmprefix import InputError, Predictor

MOST_MB = 20.0


@dataclass(frozen=True)
class Job:
    """One call and its answer: texts, or the message of an error."""

    inputs: Any
    options: dict[str, Any]
    answer: Any = None


@dataclass
class Outcome:
    """Counts of all threads, and the resident memory (MB) at each second."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    def moved(self, start: float) -> float:
        """Greatest distance (MB) of later memory from that of ``start`` seconds."""
        late = [size for moment, size in self.memory if moment >= start]
        return max((abs(size - late[0]) for size in late), default=0.0)


def resident_mb() -> float:
    """Resident memory of this process in MB, NaN where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * 4096 / 1e6


class _Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc: the fifth size is mapped, the eighth allocated in arenas."""

    _fields_ = [("sizes", ctypes.c_size_t * 10)]


def in_use_mb() -> float:
    """Memory handed out by glibc to this process in MB, NaN for other allocators."""
    gc.collect()
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):
        return float("nan")
    mallinfo.restype = _Mallinfo
    sizes = mallinfo().sizes
    return (sizes[4] + sizes[7]) / 1e6


def share_arena() -> None:
    """Let all threads to come allocate from one arena (``mallopt`` of glibc); nothing on other systems."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX


def make_jobs(model: Predictor, files: Sequence[Path], folder: Path) -> list[Job]:
    """Good and bad calls on ``files``, with the answers of this model; bad files are written to ``folder``."""
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (folder / "broken.wav").write_bytes(b"RIFF\x10\0\0\0WAVEbroken")
    (folder / "text.jpg").write_text("a picture of a cat")
    options = [{}, {"num_beams": 3}, {"seed": 7, "temperature": 0.8}, {"prompt": "a"}, {"max_new_tokens": 3}]
    jobs = [Job(file, options[n % len(options)]) for n, file in enumerate(files)]
    jobs += [Job(list(files[n : n + 3]), options[n % len(options)]) for n in range(0, len(files) - 3, 2)]
    jobs += [Job(file.read_bytes(), {}) for file in files[:4]]
    bad: list[Any] = [folder / "none.wav", folder / "broken.png", folder / "broken.wav", folder / "text.jpg", b"", []]
    jobs += [Job(value, {}) for value in bad] + [Job([files[0], folder / "none.png"], {}), Job(files[0], {"top_p": 2})]
    return [Job(job.inputs, job.options, call(model, job)) for job in jobs]


def call(model: Predictor, job: Job) -> Any:
    """Answer of ``job``, or the message of its error."""
    try:
        return model(job.inputs, **job.options)
    except InputError as error:
        return f"InputError: {error}"


def run(model: Predictor, jobs: Sequence[Job], threads: int, seconds: float) -> Outcome:
    """Let ``threads`` threads call ``model`` for ``seconds``."""
    outcome, lock, start = Outcome(), threading.Lock(), time.monotonic()

    def work(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() - start < seconds:
            job = draw.choice(jobs)
            answer = call(model, job)
            with lock:
                outcome.counts["errors" if str(job.answer).startswith("InputError") else "answers"] += 1
                if answer != job.answer:
                    outcome.wrong.append(f"{job.inputs} {job.options}: {answer!r} instead of {job.answer!r}")

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        outcome.memory.append((time.monotonic() - start, resident_mb()))
        time.sleep(min(1.0, seconds / 60))
    for worker in workers:
        worker.join()
    return outcome


def main(words: Sequence[str] | None = None) -> int:
    """Print the table; 1 for wrong answers or memory that moves, else 0."""
    import tempfile

    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.threads")
    parser.add_argument("root", nargs="?", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--one-arena", action="store_true", help="all threads allocate from one arena (glibc)")
    args = parser.parse_args(words)
    if args.one_arena:
        share_arena()
    torch.set_num_threads(1)
    model = mmprefix.load(args.root / "model", device="cpu")
    files = sorted((args.root / "samples").glob("*.[wp][an][vg]"))
    with tempfile.TemporaryDirectory() as folder:
        jobs = make_jobs(model, files, Path(folder))
        before = in_use_mb()
        outcome = run(model, jobs, args.threads, args.seconds)
    settled = min(10.0, args.seconds / 6)
    print(f"{args.threads} threads, {args.seconds:.0f} s, {len(jobs)} different calls")
    print(f"  answers        {outcome.counts['answers']:8}")
    print(f"  errors         {outcome.counts['errors']:8}")
    print(f"  wrong of both  {len(outcome.wrong):8}")
    for moment, size in outcome.memory[:: max(1, len(outcome.memory) // 12)]:
        print(f"  memory at {moment:5.1f} s {size:8.1f} MB")
    print(f"  moved after {settled:.0f} s {outcome.moved(settled):6.1f} MB (at most {MOST_MB:.0f})")
    print(f"  in use before  {before:8.1f} MB, after {in_use_mb():.1f} MB")
    for line in outcome.wrong[:10]:
        print(f"  wrong: {line}")
    return int(bool(outcome.wrong) or outcome.moved(settled) > MOST_MB)


if __name__ == "__main__":
    sys.exit(main())
