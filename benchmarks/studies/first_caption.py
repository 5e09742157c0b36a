"""A saved model in a fresh process: bytes of its folder, CPU seconds until it is loaded, and of one caption.

    python -m benchmarks.studies.first_caption runs/flickr8k_mini/model photo.jpg --repeat 3

CPU seconds are those of the process and its threads; set OMP_NUM_THREADS=1 for one core. Each repetition is a process
of its own; the second caption of the same file is timed too, since the first one prepares the decoder's matrices.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

_CHILD = """
import json, resource, sys
def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
import mmprefix
imported = used()
model = mmprefix.load(sys.argv[1], device="cpu")
loaded = used()
text = model(sys.argv[2])
first = used()
model(sys.argv[2])
print(json.dumps({"import": imported, "load": loaded - imported, "first": first - loaded, "next": used() - first}))
"""


def measure(model: str, file: str) -> dict[str, float]:
    """CPU seconds of a fresh process: to the import, to the loaded model, of the first caption and of the next."""
    done = subprocess.run([sys.executable, "-c", _CHILD, model, file], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the medians as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a saved model")
    parser.add_argument("file", help="what it captions")
    parser.add_argument("--repeat", type=int, default=3, help="fresh processes (default: 3)")
    options = parser.parse_args()
    rows = [measure(options.model, options.file) for _ in range(options.repeat)]
    size = sum(file.stat().st_size for file in Path(options.model).rglob("*") if file.is_file())
    sys.stdout.write(json.dumps({"bytes": size, **{key: median(row[key] for row in rows) for key in rows[0]}}) + "\n")


if __name__ == "__main__":
    main()
