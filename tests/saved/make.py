"""Program that made every file of this folder not written by hand: inputs, frozen parts, models, checkpoint, answers.

It runs on the code of commit 80e4e2b only, and is kept to document how the files were made. In a clone of that commit:

    PYTHONPATH=CLONE:CLONE/tests OMP_NUM_THREADS=1 python tests/saved/make.py

Two runs on one machine write the same bytes.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
import transformers as hf
from inputs import HILLS, ODD, ORDERS, PICTURES, SOUNDS, make_data
from safetensors.torch import load_file
from torch.nn import functional as F

import mmprefix

HERE = Path(__file__).resolve().parent
COMMIT = "80e4e2b"
MADE = ("parts", "models", "stopped.ckpt", "answers.json")
MARGIN = 3.0  # nats between the best text and every other

SCORED = {
    "picture": [*PICTURES, ODD],
    "sound": [*SOUNDS, ODD],
    "clipcap": [*HILLS, ODD],
    "prefix_aac": [text for text, _, _ in SOUNDS.values()],
}


# ------------------------------------------------------------------------------------------------------ frozen parts


def make_parts() -> None:
    """Make a GPT-2 trained on the texts, a CLIP and a Cnn14 with random weights, a Whisper (trained in ``whisper``)."""
    encoders: Any = importlib.import_module("tiny_encoders")
    Path("parts").mkdir()
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    encoders.clip(Path("parts/clip"), {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text})
    encoders.panns(Path("parts/panns.pth"))
    state = torch.load("parts/panns.pth", weights_only=False)["model"]
    torch.save({"model": {k: v for k, v in state.items() if ".stft." not in k}}, "parts/panns.pth")
    make_gpt2(Path("parts/gpt2"))
    speech: Any = importlib.import_module("tiny_speech")
    speech.whisper(Path("parts/whisper"), sharp=1.0, window=50, layers=1)


def make_gpt2(folder: Path, steps: int = 400) -> None:
    """Train a GPT-2 of two layers on the captions, behind random prefixes of up to 5 positions; save it in float16."""
    words = cast(Any, importlib.import_module("tiny_decoders")).tokenizer()
    texts = [*HILLS, *(text.replace(" .", ".") for text, _, _ in SOUNDS.values())]
    texts += [f"said: {text}\n{label}" for _, _, label, text in ORDERS]
    torch.manual_seed(1)
    config = hf.GPT2Config(
        vocab_size=len(words), n_embd=32, n_layer=2, n_head=4, n_positions=80, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = hf.GPT2LMHeadModel(config)
    rows = [[*words(text)["input_ids"], 0] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    leads = torch.nn.Parameter(torch.randn(len(rows), 5, 32) * 0.5)
    optimizer = torch.optim.Adam([*model.parameters(), leads], lr=3e-3)
    for step in range(steps):
        lead = leads[:, : step % 6]
        values = torch.cat([lead, model.get_input_embeddings()(ids)], dim=1)
        loss = cast(Any, model)(inputs_embeds=values, labels=F.pad(labels, (lead.shape[1], 0), value=-100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.half().save_pretrained(folder)
    words.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------------------ models


def run(*words: str) -> None:
    """Run the command line in a new process, so that no run depends on an earlier one."""
    subprocess.run([sys.executable, "-m", "mmprefix", *words], check=True)


def fit(name: str, *words: str) -> None:
    """Train recipes/NAME.yaml."""
    run("fit", "--config", f"recipes/{name}.yaml", *words)


def whisper() -> None:
    """Train the whole Whisper and save it as a frozen part; then train a prefix for it."""
    folder = Path("parts/whisper")
    learns = "--trainer.callbacks+=mmprefix.unfreeze.UnfreezeUntil"
    fit("whisper", learns, "--model.decoder.init_args.frozen=false", "--save_to=runs/taught")
    learned = load_file("runs/taught/model.safetensors")
    model = cast(Any, hf.WhisperForConditionalGeneration.from_pretrained(folder))
    names = {"decoder.lm.": "", "encoders.audio.network.": "model.encoder."}
    state = {
        ours + name.removeprefix(start): value
        for start, ours in names.items()
        for name, value in learned.items()
        if name.startswith(start)
    }
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys, left.unexpected_keys
    assert set(left.missing_keys) <= {"proj_out.weight", "model.encoder.embed_positions.weight"}, left.missing_keys
    model.half().save_pretrained(folder)
    fit("whisper")


def clipcap() -> None:
    """Train, rename the tensors to ClipCap's names, and import that checkpoint."""
    fit("clipcap")
    kept = load_file("runs/clipcap/model/model.safetensors")
    state = {k.replace("mappers.image.", "clip_project.", 1): v for k, v in kept.items()}
    torch.save(state, "clipcap.pt")
    words = ("--encoder", "parts/clip", "--normalize", "no", "--decoder", "parts/gpt2")
    run("import", "clipcap", "clipcap.pt", "models/clipcap", *words)


def prefix_aac() -> None:
    """Train, rename the tensors to Prefix-AAC's names, and import that checkpoint."""
    fit("prefix_aac")
    model = mmprefix.load("runs/prefix_aac/model", device="cpu").model
    aac_slots = cast(Any, importlib.import_module("mmprefix.interop.prefix_aac")).aac_slots
    state = {slot.name: slot.own.detach().reshape(slot.shape).clone() for slot in aac_slots(model)}
    torch.save(state, "prefix_aac.pt")
    words = ("--dataset", "audiocaps", "--vocabulary", "data/words.txt", "--decoder", "parts/gpt2", "--heads", "4")
    run("import", "prefix-aac", "prefix_aac.pt", "models/prefix_aac", *words)


def training() -> None:
    """Train 12 steps, and keep the checkpoint of step 6."""
    fit("training")
    folder = str(Path.cwd()) + "/"
    (kept,) = Path("runs/training/checkpoints").glob("*step=6.ckpt")
    torch.save(relative(torch.load(kept, weights_only=True), folder), "stopped.ckpt")


def relative(value: Any, folder: str) -> Any:
    """Copy of ``value`` in which every path below ``folder`` is relative to it."""
    if isinstance(value, str):
        return value.replace(folder, "")
    if isinstance(value, dict):
        return {relative(k, folder): relative(v, folder) for k, v in value.items()}
    return type(value)(relative(item, folder) for item in value) if isinstance(value, list | tuple) else value


# ----------------------------------------------------------------------------------------------------------- answers


PARTS = {
    "picture": {},
    "sound": {},
    "whisper": {"audio": "parts/whisper", "decoder": "parts/whisper"},
    "clipcap": {"image": "parts/clip", "decoder": "parts/gpt2"},
    "prefix_aac": {"decoder": "parts/gpt2"},
    "detection": {"audio": "parts/whisper", "decoder": "parts/gpt2"},
}


def answers() -> dict[str, Any]:
    """Answers of all models; AssertionError where a text leads by less than ``MARGIN``."""
    recorded: dict[str, Any] = {}
    for name, parts in PARTS.items():
        model = mmprefix.load(f"models/{name}", device="cpu", parts=parts)
        files = [f"data/{n}.{'png' if name in ('picture', 'clipcap') else 'wav'}" for n in range(4)]
        recorded[name] = {"parts": parts}
        if name == "whisper":
            recorded[name]["understood"] = dict(zip(files, model.understand(files), strict=True))
        elif name == "detection":
            recorded[name]["odds"] = detected(model, files)
        else:
            recorded[name] |= captioned(model, files, SCORED[name])
    return recorded


def captioned(model: Any, files: list[str], texts: list[str]) -> dict[str, Any]:
    """Caption and its score for each file, and the scores of ``texts`` for each file."""
    best = model.candidates(files, num_return=1)
    three = model.candidates(files, num_return=3, num_beams=5)
    scores = {file: dict(zip(texts, model.score(file, texts), strict=True)) for file in files}
    for file, row, more in zip(files, best, three, strict=True):
        rivals = {c.text for c in more} | set(texts)
        if texts == SCORED["prefix_aac"]:  # there a full stop is a word
            rivals = {text.replace(".", "").strip() + " ." for text in rivals}
        own, *rest = model.score(file, [row[0].text, *sorted(rivals - {row[0].text})])
        print(f"{file} {row[0].text!r} {own:.4f} leads by {own - max(rest):.2f}")  # noqa: T201
        assert own - max(rest) > MARGIN
    assert len({row[0].text for row in best}) == 4
    captions = {file: {"text": row[0].text, "score": row[0].score} for file, row in zip(files, best, strict=True)}
    return {"captions": captions, "scores": scores}


def detected(model: Any, files: list[str]) -> dict[str, list[float]]:
    """Log odds of the four orders, for each combination of inputs."""
    rows = [json.loads(line) for line in Path("data/orders.jsonl").read_text().splitlines()]
    both = [{"audio": file, "signals": row["signals"]} for file, row in zip(files, rows, strict=True)]
    transcripts = [row["transcript"] for row in rows]
    odds = {
        "audio": model.detect(files),
        "signals": model.detect([{"signals": row["signals"]} for row in rows]),
        "text": model.detect(context=transcripts),
        "audio+signals+text": model.detect(both, context=transcripts),
    }
    for name, values in odds.items():
        print(name, [f"{value:+.2f}" for value in values])  # noqa: T201
        assert min(map(abs, values)) > 1.0
    return odds


def ended() -> dict[str, Any]:
    """End of the training resumed from the checkpoint: losses, and a summary of each tensor."""
    shutil.rmtree("runs/training")
    fit("training", "--ckpt_path", "stopped.ckpt")
    lines = [line.split(",") for line in Path("runs/training/logs/version_0/metrics.csv").read_text().splitlines()]
    columns = {name: [line[at] for line in lines[1:]] for at, name in enumerate(lines[0])}
    tensors = load_file("runs/training/model/model.safetensors")
    return {
        "train/loss": [float(value) for value in columns["train/loss"] if value],
        "val/loss": [float(value) for value in columns["val/loss"] if value],
        "tensors": [described(tensor) for _, tensor in sorted(tensors.items())],
    }


def described(tensor: torch.Tensor) -> dict[str, Any]:
    """Shape, Euclidean norm, and eight evenly spaced elements, the first and the last among them."""
    flat = tensor.flatten()
    indices = torch.linspace(0, len(flat) - 1, 8, dtype=torch.float64).long()
    return {"shape": list(tensor.shape), "norm": float(flat.norm()), "values": flat[indices].tolist()}


# -------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    """Make everything in a temporary folder, and copy it to this one if no assertion failed."""
    root = Path(cast(Any, mmprefix).__file__).parents[1]
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert head.startswith(COMMIT), f"this program runs on the code of {COMMIT} only, not on {head.strip()}"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(HERE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*MADE))
        os.chdir(folder)
        make_data()
        make_parts()
        for name in ("picture", "sound"):
            fit(name)
        for make in (whisper, clipcap, prefix_aac):
            make()
        fit("detection")
        for file in Path("models").glob("*/*.*"):
            if file.suffix in (".yaml", ".md"):
                file.write_text(file.read_text().replace(f"{Path.cwd()}/", ""))
        training()
        Path("answers.json").write_text(json.dumps({**answers(), "training": ended()}, indent=1) + "\n")
        for name in MADE:
            shutil.rmtree(HERE / name, ignore_errors=True)
            (shutil.copytree if Path(name).is_dir() else shutil.copy)(name, HERE / name)
        shutil.copytree("data", HERE / "data", dirs_exist_ok=True)
        os.chdir(HERE)


if __name__ == "__main__":
    main()
