"""Time and memory of `mmprefix import` on checkpoints of the released sizes, and of a first caption.

    python -m benchmarks.import_checkpoints --sound clip.ogg --picture photo.jpg

Neither the checkpoints nor the frozen parts are at hand, so both are made with random weights of the real sizes: CLIP
RN50x4 and ViT-B/32, GPT-2, Cnn14. The captions are noise. Each command runs in a process of its own: wall time, CPU
time and peak resident memory are those of that process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file, save_file

from benchmarks.lib import random_gpt2, released_checkpoints
from benchmarks.lib.report import benchmark_parser, markdown_table, publish

CASES: dict[str, dict[str, Any]] = {
    "clipcap, MLP, GPT-2 frozen": {
        "shapes": lambda gpt: released_checkpoints.clipcap_shapes("mlp", 512, 10, gpt),
        "clip": "ViT-B-32",
    },
    "clipcap, MLP, GPT-2 tuned": {
        "shapes": lambda gpt: released_checkpoints.clipcap_shapes("mlp", 512, 10, gpt),
        "clip": "ViT-B-32",
        "tuned": 1,
    },
    "clipcap, transformer 40 + 40": {
        "shapes": lambda gpt: released_checkpoints.clipcap_shapes("transformer", 640, 40, gpt),
        "clip": "RN50x4",
    },
    "prefix-aac, own words": {
        "shapes": lambda gpt: released_checkpoints.PrefixAacSizes().shapes(gpt),
        "dataset": "audiocaps",
        "words": 7911,
    },
    "prefix-aac, GPT-2's tokens": {
        "shapes": lambda gpt: released_checkpoints.PrefixAacSizes(words=50257).shapes(gpt),
        "dataset": "clotho",
    },
}
CHILD = """
import json, resource, sys, time
began = time.perf_counter()
from mmprefix.cli.main import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
usage = {"code": code, "wall": time.perf_counter() - began, "cpu": used.ru_utime + used.ru_stime}
usage["mb"] = used.ru_maxrss / 1e3
print(json.dumps(usage), file=sys.stderr)
"""


def save_frozen_parts(folder: Path) -> None:
    """Save both CLIP networks and a GPT-2 with random weights in ``folder``."""
    random_gpt2.save_gpt2(folder / "gpt2", random_gpt2.Gpt2Size())
    for name in ("ViT-B-32", "RN50x4"):
        torch.manual_seed(0)
        model = open_clip.create_model(name, force_quick_gelu=True)
        save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, folder / f"{name}.safetensors")


def save_checkpoint(case: dict[str, Any], folder: Path) -> tuple[Path, int, int]:
    """Save the checkpoint of ``case``: its file, its bytes, and the bytes of its trained tensors."""
    state = released_checkpoints.random_weights(case["shapes"](released_checkpoints.Gpt2Sizes()))
    aac = "dataset" in case
    if not case.get("tuned"):
        for name, value in load_file(folder / "gpt2" / "model.safetensors").items():
            state[f"gpt.{name.removeprefix('transformer.') if aac else name}"] = value
        if not aac:
            state["gpt.lm_head.weight"] = state["gpt.transformer.wte.weight"]
    torch.save(state, folder / "checkpoint.pt")
    trained = {k: v for k, v in state.items() if case.get("tuned") or not k.startswith("gpt.")}
    trained = {k: v for k, v in trained.items() if ".stft." not in k and not k.endswith((".pe", "lm_head.weight"))}
    size = sum(value.numel() * value.element_size() for value in trained.values())
    return folder / "checkpoint.pt", (folder / "checkpoint.pt").stat().st_size, size


def import_options(case: dict[str, Any], folder: Path) -> list[str]:
    """Command-line options of the importer for ``case``."""
    options = ["--decoder", str(folder / "gpt2")]
    if "clip" in case:
        weights = str(folder / f"{case['clip']}.safetensors")
        return [*options, "--encoder", f"{case['clip']}-quickgelu", "--pretrained", weights, "--normalize", "no"]
    if "words" in case:
        file = folder / "words.txt"
        names = ["!" if not i else "<eos>" if i == 13 else f"w{i}" for i in range(case["words"])]
        file.write_text("".join(f"{name}\n" for name in names))
        options += ["--vocabulary", str(file)]
    return [*options, "--dataset", case["dataset"]]


def run_command(arguments: Sequence[str]) -> tuple[dict[str, float], str]:
    """Run ``mmprefix`` in a process of its own: seconds ("wall", "cpu") and peak memory ("mb"), and its output."""
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True)
    used = json.loads(done.stderr.splitlines()[-1])
    if used["code"]:
        sys.exit(done.stderr)
    return used, done.stdout


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure each case once, print the table, write the JSON file."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--sound", type=Path, required=True, help="real sound to caption")
    parser.add_argument("--picture", type=Path, required=True, help="real picture to caption")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        save_frozen_parts(folder)
        for name, case in CASES.items():
            file, size, trained = save_checkpoint(case, folder)
            model = folder / "model"
            system = "clipcap" if "clip" in case else "prefix-aac"
            used, _ = run_command(["import", system, str(file), str(model), *import_options(case, folder)])
            kept = sum(part.stat().st_size for part in model.iterdir())
            example = options.picture if "clip" in case else options.sound
            captioned, text = run_command(["caption", str(model), str(example)])
            row = {"case": name, "checkpoint": size, "trained": trained, "directory": kept}
            rows.append({**row, "import": used, "caption": captioned, "text": text.strip().rpartition(": ")[2]})
            print(f"{name}: {rows[-1]['text'][:70]}", file=sys.stderr)
    publish(rows, report(rows), options.json)
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """The table."""
    head = ["checkpoint", "MB", "import s", "CPU s", "peak MB", "directory MB", "trained MB", "caption s", "peak MB"]
    return markdown_table(head, [[
        row["case"], f"{row['checkpoint'] / 1e6:.0f}", f"{row['import']['wall']:.1f}", f"{row['import']['cpu']:.1f}",
        f"{row['import']['mb']:.0f}", f"{row['directory'] / 1e6:.2f}", f"{row['trained'] / 1e6:.2f}",
        f"{row['caption']['wall']:.1f}", f"{row['caption']['mb']:.0f}",
    ] for row in rows])  # fmt: skip


if __name__ == "__main__":
    main()
