"""Start-up time of fresh processes: to an import, to the help text, to a first caption.

    python -m benchmarks.startup --model runs/quickstart/model --file runs/quickstart/samples/audio-0000.wav --repeat 5

The model is any saved one whose parts are on this machine (the quick start's, say); without one, a small untrained
model is made of the parts inside the package, and captions a picture of noise. The libraries' own imports stand beside
it. CPU time of the process and its children, and wall time; commands are interleaved.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.lib.report import benchmark_parser, markdown_table, publish, versions

GPT2 = "import torch; from transformers import GPT2LMHeadModel"


def commands(model: str, file: str) -> dict[str, list[str]]:
    """Arguments of Python for each command, by the name in the table."""
    return {
        "python": ["-c", "pass"],
        "import mmprefix": ["-c", "import mmprefix"],
        "mmprefix --help": ["-m", "mmprefix", "--help"],
        "mmprefix caption, to the first text": ["-m", "mmprefix", "caption", model, file],
        "torch and transformers' GPT-2, imported": ["-c", GPT2],
        "Lightning, imported": ["-c", "import lightning.pytorch"],
    }


def make_model(folder: Path) -> tuple[str, str]:
    """Save an untrained model of the parts inside the package, and a picture for it; their paths."""
    from functools import partial

    import numpy as np
    from PIL import Image

    from mmprefix.decoders.causal import CausalDecoder
    from mmprefix.encoders.vit import ViT
    from mmprefix.generation.options import GenerateOptions
    from mmprefix.inference.predictor import Predictor
    from mmprefix.mappers.mlp import MLP
    from mmprefix.model import Branch, PrefixLM
    from mmprefix.saved_model import ModelSettings

    branch = Branch(ViT("mmprefix:world/frozen/vision"), partial(MLP, length=8, hidden=256))
    model = PrefixLM({"image": branch}, CausalDecoder("mmprefix:world/frozen/decoder"))
    Predictor(model, ModelSettings(GenerateOptions(max_new_tokens=24))).save(folder / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    return str(folder / "model"), str(folder / "noise.png")


def time_process(arguments: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of a Python process; ends the program if it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {done.stderr}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time every command once a round, after rounds that bring the files into the page cache."""
    started = commands(options.model, options.file)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in started}
    for number in range(options.warm_up + options.repeat):
        for name, arguments in started.items():
            seconds = time_process(arguments)
            if number >= options.warm_up:
                times[name].append(seconds)
    rows = [
        {"command": name, "cpu_s": [cpu for cpu, _ in pairs], "wall_s": [wall for _, wall in pairs]}
        for name, pairs in times.items()
    ]
    return {"options": {"repeat": options.repeat}, "versions": versions(), "commands": rows}


def report(results: dict[str, Any]) -> str:
    """The table."""
    rows = [
        [
            row["command"],
            f"{median(row['cpu_s']):.3g}",
            f"{min(row['cpu_s']):.3g} - {max(row['cpu_s']):.3g}",
            f"{median(row['wall_s']):.3g}",
        ]
        for row in results["commands"]
    ]
    return markdown_table(["process", "CPU s", "min - max", "wall s"], rows)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write the JSON file."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", help="saved model (default: an untrained one is made)")
    parser.add_argument("--file", help="input to caption")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before those that count (default %(default)s)")
    options = parser.parse_args(arguments)
    if (options.model is None) != (options.file is None):
        parser.error("give --model and --file, or neither")
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            options.model, options.file = make_model(Path(folder))
        results = measure(options)
    publish(results, report(results), options.json)
    return results


if __name__ == "__main__":
    main()
