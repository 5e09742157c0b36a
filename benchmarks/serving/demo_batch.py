"""Files a second of the page's batch tab, beside plain Python loops over the same pictures.

    python -m benchmarks.serving.demo_batch [--model MODEL] [--files 200] [--folder PICTURES]

Without a folder they are pictures of the embedded world, 64 x 64 pixels, and the model is the embedded one. The batch
tab checks the header of each file, captions, and writes CSV and zip; the loops call ``model(file)`` for one file after
the other, and ``model(files)`` for all at once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from mmprefix import world
from mmprefix.demo.calls import DemoState
from mmprefix.demo.limits import DemoLimits
from mmprefix.demo.models import ModelShelf
from mmprefix.demo.tabs.batch_tab import batch_handler
from mmprefix.inference.model_folder import EMBEDDED_MODEL


def pictures(folder: Path, count: int) -> list[str]:
    """Files of ``count`` scenes of the embedded world."""
    files = []
    for number, scene in enumerate(islice(world.sample("image", 5, new=True), count)):
        assert isinstance(scene, world.Picture)
        files.append(str(folder / f"{number:04d}.png"))
        world.draw(scene).save(files[-1])
    return files


def seconds(work: Callable[[], object]) -> float:
    """Seconds of the second run of ``work``, behind a first one that warms up."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    shelf = ModelShelf({"model": args.model}, device="cpu")
    state, model = DemoState(shelf, DemoLimits(max_files=args.files)), shelf.get("model")
    with tempfile.TemporaryDirectory() as folder:
        paths = (
            sorted(map(str, args.folder.glob("*.[jp][pn]*g"))) if args.folder else pictures(Path(folder), args.files)
        )
        files = paths[: args.files]
        ways: dict[str, Callable[[], object]] = {
            "batch tab": lambda: list(batch_handler(state)(None, files, "model", "")),
            "loop, one at a time": lambda: [model(file) for file in files],
            "one call with all": lambda: model(files),
        }
        for name, work in ways.items():
            spent = seconds(work)
            print(f"{name:20} {len(files)} files in {spent:6.2f} s   {len(files) / spent:6.1f} files a second")


if __name__ == "__main__":
    main()
