"""How long `mmprefix import` takes and what it needs, on checkpoints of the size that was released; then a caption.

    python -m benchmarks.import_checkpoints --sound clip.ogg --picture photo.jpg

Neither the checkpoints nor the frozen parts are at hand, so both are made with random weights of the real sizes: CLIP
RN50x4 and ViT-B/32, GPT-2, Cnn14. The words that come out are noise; what is measured is the path. Each command runs in
a process of its own: wall time, processor time and the largest resident memory are those of that process.
"""

from __future__ import annotations

import argparse
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
from benchmarks.lib.timing import table

CASES: dict[str, dict[str, Any]] = {
    "clipcap, MLP, GPT-2 frozen": {
        "shapes": lambda g: released_checkpoints.clipcap("mlp", 512, 10, g),
        "clip": "ViT-B-32",
    },
    "clipcap, MLP, GPT-2 tuned": {
        "shapes": lambda g: released_checkpoints.clipcap("mlp", 512, 10, g),
        "clip": "ViT-B-32",
        "tuned": 1,
    },
    "clipcap, transformer 40 + 40": {
        "shapes": lambda g: released_checkpoints.clipcap("transformer", 640, 40, g),
        "clip": "RN50x4",
    },
    "prefix-aac, own words": {
        "shapes": lambda g: released_checkpoints.Aac().shapes(g),
        "dataset": "audiocaps",
        "words": 7911,
    },
    "prefix-aac, GPT-2's tokens": {
        "shapes": lambda g: released_checkpoints.Aac(words=50257).shapes(g),
        "dataset": "clotho",
    },
}
CHILD = """
import json, resource, sys, time
began = time.perf_counter()
from mmprefix.cli import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
told = {"code": code, "wall": time.perf_counter() - began, "cpu": used.ru_utime + used.ru_stime}
told["mb"] = used.ru_maxrss / 1e3
print(json.dumps(told), file=sys.stderr)
"""


def frozen(place: Path) -> None:
    """CLIP's two networks and a GPT-2 in ``place``, with random weights."""
    random_gpt2.save(place / "gpt2", random_gpt2.Size())
    for name in ("ViT-B-32", "RN50x4"):
        torch.manual_seed(0)
        model = open_clip.create_model(name, force_quick_gelu=True)
        save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, place / f"{name}.safetensors")


def checkpoint(case: dict[str, Any], place: Path) -> tuple[Path, int, int]:
    """The checkpoint of a case, its bytes, and the bytes of what was trained in it."""
    state = released_checkpoints.weights(case["shapes"](released_checkpoints.Gpt2()))
    aac = "dataset" in case
    if not case.get("tuned"):
        for name, value in load_file(place / "gpt2" / "model.safetensors").items():
            state[f"gpt.{name.removeprefix('transformer.') if aac else name}"] = value
        if not aac:
            state["gpt.lm_head.weight"] = state["gpt.transformer.wte.weight"]
    torch.save(state, place / "checkpoint.pt")
    trained = {k: v for k, v in state.items() if case.get("tuned") or not k.startswith("gpt.")}
    trained = {k: v for k, v in trained.items() if ".stft." not in k and not k.endswith((".pe", "lm_head.weight"))}
    size = sum(value.numel() * value.element_size() for value in trained.values())
    return place / "checkpoint.pt", (place / "checkpoint.pt").stat().st_size, size


def words(case: dict[str, Any], place: Path) -> list[str]:
    """The options that the importer asks for."""
    found = ["--decoder", str(place / "gpt2")]
    if "clip" in case:
        weights = str(place / f"{case['clip']}.safetensors")
        return [*found, "--encoder", f"{case['clip']}-quickgelu", "--pretrained", weights, "--normalize", "no"]
    if "words" in case:
        file = place / "words.txt"
        names = ["!" if not i else "<eos>" if i == 13 else f"w{i}" for i in range(case["words"])]
        file.write_text("".join(f"{name}\n" for name in names))
        found += ["--vocabulary", str(file)]
    return [*found, "--dataset", case["dataset"]]


def run(arguments: Sequence[str]) -> tuple[dict[str, float], str]:
    """One command in a process of its own: what it used, and what it printed."""
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True)
    used = json.loads(done.stderr.splitlines()[-1])
    if used["code"]:
        sys.exit(done.stderr)
    return used, done.stdout


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures each case once, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sound", type=Path, required=True, help="a real sound to caption")
    parser.add_argument("--picture", type=Path, required=True, help="a real picture to caption")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        frozen(place)
        for name, case in CASES.items():
            file, size, trained = checkpoint(case, place)
            model = place / "model"
            system = "clipcap" if "clip" in case else "prefix-aac"
            used, _ = run(["import", system, str(file), str(model), *words(case, place)])
            kept = sum(part.stat().st_size for part in model.iterdir())
            captioned, text = run(["caption", str(model), str(options.picture if "clip" in case else options.sound)])
            row = {"case": name, "checkpoint": size, "trained": trained, "directory": kept}
            rows.append({**row, "import": used, "caption": captioned, "text": text.strip().rpartition(": ")[2]})
            print(f"{name}: {rows[-1]['text'][:70]}", file=sys.stderr)
    head = ["checkpoint", "MB", "import s", "CPU s", "peak MB", "directory MB", "trained MB", "caption s", "peak MB"]
    print(table(head, [[
        row["case"], f"{row['checkpoint'] / 1e6:.0f}", f"{row['import']['wall']:.1f}", f"{row['import']['cpu']:.1f}",
        f"{row['import']['mb']:.0f}", f"{row['directory'] / 1e6:.2f}", f"{row['trained'] / 1e6:.2f}",
        f"{row['caption']['wall']:.1f}", f"{row['caption']['mb']:.0f}",
    ] for row in rows]))  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()
