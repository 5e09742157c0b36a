"""``python -m tests.fuzz --inputs 1200 --seed 0``: run mutated inputs, print faults as they come and a table."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is imported; a child of a fork has no threads of its parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from .cases import SHARES, kind_of
from .runner import Outcome, run_case
from .seeds import make, warm_up


def main(words: Sequence[str] | None = None) -> int:
    """Run the inputs and print the table; exit code 1 where one is at fault."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1200, help="number of inputs (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other inputs (default %(default)s)")
    parser.add_argument("--only", type=int, help="this input alone")
    parser.add_argument("--kind", help="inputs of this kind alone")
    parser.add_argument(
        "--fresh", type=int, default=40, help="every so many run as new processes (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="write a JSON line an input to this file")
    parser.add_argument("--base", type=Path, help="folder of valid inputs that were made before (default: made anew)")
    args = parser.parse_args(words)

    numbers = range(args.first, args.first + args.inputs) if args.only is None else [args.only]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds.") as folder:
        os.environ["MMPREFIX_CACHE"] = str(Path(folder) / "cache")
        base = args.base or Path(folder) / "base"
        if not base.exists():
            make(base)
        else:
            warm_up(base, Path(folder))
        for number in numbers:
            if args.kind and kind_of(number) != args.kind:
                continue
            outcome = run_case(number, args.seed, base, fresh=number % args.fresh == args.fresh - 1)
            outcomes.append(outcome)
            if outcome.fault or args.only is not None:
                lines = (f"{number} {outcome.kind} {outcome.change}", f"    {outcome.message}", f"    {outcome.fault}")
                sys.stdout.write("\n".join(lines) + "\n")
                sys.stdout.flush()
            if args.out:
                with args.out.open("a") as stream:
                    stream.write(json.dumps(asdict(outcome)) + "\n")
    sys.stdout.write(table(outcomes, list(SHARES)))
    return 1 if any(outcome.fault for outcome in outcomes) else 0


def table(outcomes: list[Outcome], kinds: list[str]) -> str:
    """Inputs, exit codes, faults and the most time and memory of each kind."""
    head = ("inputs", "exit 0", "exit 2", "exit 3", "faults", "most s", "most GB")
    lines = [f"{'kind':12}" + "".join(f"{name:>8}" for name in head)]
    for kind in kinds:
        rows = [outcome for outcome in outcomes if outcome.kind == kind]
        codes = Counter(row.code for row in rows)
        faults = sum(row.fault is not None for row in rows)
        counts = "".join(f"{value:8}" for value in (len(rows), codes[0], codes[2], codes[3], faults))
        seconds, size = max((row.seconds for row in rows), default=0.0), max((row.bytes for row in rows), default=0.0)
        lines.append(f"{kind:12}{counts}{seconds:8.1f}{size / 1e9:8.2f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
