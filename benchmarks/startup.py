"""What it costs to begin: fresh processes from nothing to help, to an import, to a first caption.

    python -m benchmarks.startup --model runs/quickstart/model --file runs/quickstart/samples/audio-0000.wav --repeat 5

The model is any saved one whose parts are on this machine (the quick start's, say); without one, a small model is made
of the parts inside the package, with a mapper that has learned nothing, and captions a picture of noise. Beside it what
the libraries alone take. Processor time of the process and its children, wall time beside it; variants take turns.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.lib.timing import table, versions

GPT2 = "import torch; from transformers import GPT2LMHeadModel"


def commands(model: str, file: str) -> dict[str, list[str]]:
    """What is started, by the name that the table has."""
    return {
        "python": ["-c", "pass"],
        "import mmprefix": ["-c", "import mmprefix"],
        "mmprefix --help": ["-m", "mmprefix", "--help"],
        "mmprefix caption, to the first text": ["-m", "mmprefix", "caption", model, file],
        "torch and transformers' GPT-2, imported": ["-c", GPT2],
        "Lightning, imported": ["-c", "import lightning.pytorch"],
    }


def made(folder: Path) -> tuple[str, str]:
    """An untrained model of the parts inside the package, and a picture for it."""
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


def seconds(words: list[str]) -> tuple[float, float]:
    """Processor and wall time of a process; ends the program where it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    some = commands(options.model, options.file)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in some}
    for number in range(options.repeat + 1):
        for name, words in some.items():
            found = seconds(words)
            if number:  # the first round brings the files into the page cache
                times[name].append(found)
    rows = [
        {"command": name, "cpu_s": [cpu for cpu, _ in found], "wall_s": [wall for _, wall in found]}
        for name, found in times.items()
    ]
    return {"options": {"repeat": options.repeat}, "versions": versions(), "commands": rows}


def report(found: dict[str, Any]) -> str:
    """The table."""
    rows = [
        [
            row["command"],
            f"{median(row['cpu_s']):.3g}",
            f"{min(row['cpu_s']):.3g} - {max(row['cpu_s']):.3g}",
            f"{median(row['wall_s']):.3g}",
        ]
        for row in found["commands"]
    ]
    return table(["process", "CPU s", "min - max", "wall s"], rows)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a saved model; without it an untrained one is made")
    parser.add_argument("--file", help="what it captions")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", help="a file for all figures")
    options = parser.parse_args(arguments)
    if (options.model is None) != (options.file is None):
        parser.error("give --model and --file, or neither")
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            options.model, options.file = made(Path(folder))
        found = measured(options)
    print(report(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
