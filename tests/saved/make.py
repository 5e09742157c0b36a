"""Makes every file of this folder that is not written by hand: inputs, frozen parts, models, checkpoint, answers.

It runs on the code of commit 80e4e2b only, and is kept to show how the files came about. In a clone of that commit:

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

import numpy as np
import soundfile
import torch
import transformers as hf
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch.nn import functional as F

import mmprefix

HERE = Path(__file__).resolve().parent
COMMIT = "80e4e2b"
MADE = ("parts", "models", "stopped.ckpt", "answers.json")
RATE = 16000
MARGIN = 3.0  # nats, between the text that leads and every other

PICTURES = {
    "a large red circle in the centre": ((210, 30, 30), "ellipse", (12, 12, 52, 52)),
    "a small green square in the top left": ((30, 170, 40), "rectangle", (4, 4, 22, 22)),
    "a blue square to the left of a green circle": ((40, 50, 220), "rectangle", (2, 22, 30, 50)),
    "a large yellow ring in the bottom right": ((230, 210, 40), "ellipse", (22, 22, 62, 62)),
}
HILLS = ("the cat runs over a green hill.", "a dog barks.", "some rain falls on the old roof.", "a bell rings twice.")
SOUNDS = {  # what the shipped decoder says of a sound, what the small one says, Hz, seconds
    "a short low tone": ("old bell rings .", 200.0, 0.3),
    "a long medium tone, then a short low buzz": ("some rain falls on the roof .", 900.0, 0.9),
    "first a short high buzz and then a long low hiss": ("a dog barks loudly twice .", 2200.0, 0.5),
    "there is a long high warble and nothing else": ("the cat runs over .", 5000.0, 0.7),
}
ORDERS = (
    ("light_on", {"room": "hall"}, "true", "the dog runs"),
    ("light_off", {"room": "roof"}, "false", "a bell rings"),
    ("ask", {"thing": "rain"}, "true", "some dog barks"),
    ("ask", {"thing": "cat"}, "false", "the bell falls"),
)
ODD = "some old bell falls on the cat."
SCORED = {
    "picture": [*PICTURES, ODD],
    "sound": [*SOUNDS, ODD],
    "clipcap": [*HILLS, ODD],
    "prefix_aac": [said for said, _, _ in SOUNDS.values()],
}


# ------------------------------------------------------------------------------------------------------------ inputs


def make_data() -> None:
    """Four pictures, four sounds, and the manifests over them."""
    for n, (caption, (colour, shape, box)) in enumerate(PICTURES.items()):
        picture = Image.new("RGB", (64, 64), (235 - 20 * n, 235, 200 + 15 * n))
        getattr(ImageDraw.Draw(picture), shape)(box, fill=colour)
        if "left of" in caption:
            ImageDraw.Draw(picture).ellipse((36, 22, 60, 46), fill=(30, 170, 40))
        picture.save(f"data/{n}.png")
    for n, (_, pitch, seconds) in enumerate(SOUNDS.values()):
        t = np.arange(round(seconds * RATE)) / RATE
        values = 0.6 * np.sin(np.pi * t / seconds) * np.sin(2 * np.pi * pitch * t)
        soundfile.write(f"data/{n}.wav", values, RATE, subtype="PCM_16")
    names = {"image": [f"{n}.png" for n in range(4)], "audio": [f"{n}.wav" for n in range(4)]}
    for name, kind, captions in (
        ("pictures", "image", list(PICTURES)),
        ("sounds", "audio", list(SOUNDS)),
        ("hills", "image", list(HILLS)),
        ("bells", "audio", [said for said, _, _ in SOUNDS.values()]),
    ):
        files = zip(names[kind], captions, strict=True)
        write_rows(name, [{"id": f"{name}{n}", kind: f, "caption": c} for n, (f, c) in enumerate(files)])
    orders = [
        {
            "id": f"order{n}", "audio": f"{n}.wav", "intent": intent, "slots": slots, "label": label,
            "transcript": said, "signals": [float(n % 3), 1.0 if label == "true" else 0.25],
        }
        for n, (intent, slots, label, said) in enumerate(ORDERS)
    ]  # fmt: skip
    write_rows("orders", orders)
    words = sorted({word for said, _, _ in SOUNDS.values() for word in said.split()} - {"."})
    Path("data/words.txt").write_text("\n".join(["!", *words, ".", "<eos>"]) + "\n")


def write_rows(name: str, rows: list[dict[str, Any]]) -> None:
    Path(f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# ------------------------------------------------------------------------------------------------------ frozen parts


def make_parts() -> None:
    """A GPT-2 that has read the texts, a CLIP and a Cnn14 with random weights, a Whisper (taught in ``whisper``)."""
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
    """One GPT-2 of two layers, in float16: it has learned the captions, and that a prefix may say which it is."""
    words = cast(Any, importlib.import_module("tiny_decoders")).tokenizer()
    texts = [*HILLS, *(said.replace(" .", ".") for said, _, _ in SOUNDS.values())]
    texts += [f"said: {said}\n{label}" for _, _, label, said in ORDERS]
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
    """The command line, as a user has it: in a process of its own, so that nothing depends on what was made before."""
    subprocess.run([sys.executable, "-m", "mmprefix", *words], check=True)


def fit(name: str, *words: str) -> None:
    run("fit", "--config", f"recipes/{name}.yaml", *words)


def whisper() -> None:
    """All of Whisper learns along at first, and becomes a part on disk; then a prefix is trained for it."""
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
    """What was trained, by ClipCap's names, imported."""
    fit("clipcap")
    kept = load_file("runs/clipcap/model/model.safetensors")
    state = {k.replace("mappers.image.", "clip_project.", 1): v for k, v in kept.items()}
    torch.save(state, "clipcap.pt")
    words = ("--encoder", "parts/clip", "--normalize", "no", "--decoder", "parts/gpt2")
    run("import", "clipcap", "clipcap.pt", "models/clipcap", *words)


def prefix_aac() -> None:
    """What was trained, by Prefix-AAC's names, imported."""
    fit("prefix_aac")
    model = mmprefix.load("runs/prefix_aac/model", device="cpu").model
    aac_slots = cast(Any, importlib.import_module("mmprefix.interop.prefix_aac")).aac_slots
    state = {slot.name: slot.own.detach().reshape(slot.shape).clone() for slot in aac_slots(model)}
    torch.save(state, "prefix_aac.pt")
    words = ("--dataset", "audiocaps", "--vocabulary", "data/words.txt", "--decoder", "parts/gpt2", "--heads", "4")
    run("import", "prefix-aac", "prefix_aac.pt", "models/prefix_aac", *words)


def training() -> None:
    """The whole training; its checkpoint of step 6, of 12, is kept."""
    fit("training")
    here = str(Path.cwd()) + "/"
    (kept,) = Path("runs/training/checkpoints").glob("*step=6.ckpt")
    torch.save(relative(torch.load(kept, weights_only=True), here), "stopped.ckpt")


def relative(value: Any, here: str) -> Any:
    """``value`` with the paths in it relative to ``here``, the folder of this program in a user's copy."""
    if isinstance(value, str):
        return value.replace(here, "")
    if isinstance(value, dict):
        return {relative(k, here): relative(v, here) for k, v in value.items()}
    return type(value)(relative(item, here) for item in value) if isinstance(value, list | tuple) else value


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
    """All that the models answer; AssertionError where a text leads by less than ``MARGIN``."""
    found: dict[str, Any] = {}
    for name, parts in PARTS.items():
        model = mmprefix.load(f"models/{name}", device="cpu", parts=parts)
        files = [f"data/{n}.{'png' if name in ('picture', 'clipcap') else 'wav'}" for n in range(4)]
        found[name] = {"parts": parts}
        if name == "whisper":
            found[name]["understood"] = dict(zip(files, model.understand(files), strict=True))
        elif name == "detection":
            found[name]["odds"] = detected(model, files)
        else:
            found[name] |= captioned(model, files, SCORED[name])
    return found


def captioned(model: Any, files: list[str], texts: list[str]) -> dict[str, Any]:
    """Texts and scores of each file; the scores of the same ``texts`` for each."""
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
    """Log odds of the four orders by what is given of them."""
    rows = [json.loads(line) for line in Path("data/orders.jsonl").read_text().splitlines()]
    both = [{"audio": file, "signals": row["signals"]} for file, row in zip(files, rows, strict=True)]
    said = [row["transcript"] for row in rows]
    odds = {
        "audio": model.detect(files),
        "signals": model.detect([{"signals": row["signals"]} for row in rows]),
        "text": model.detect(context=said),
        "audio+signals+text": model.detect(both, context=said),
    }
    for name, values in odds.items():
        print(name, [f"{value:+.2f}" for value in values])  # noqa: T201
        assert min(map(abs, values)) > 1.0
    return odds


def ended() -> dict[str, Any]:
    """The end of the training that goes on from the checkpoint: losses, and a few numbers of each tensor."""
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
    """Shape, Euclidean length, and eight numbers at equal distances, the first and last among them."""
    flat = tensor.flatten()
    places = torch.linspace(0, len(flat) - 1, 8, dtype=torch.float64).long()
    return {"shape": list(tensor.shape), "norm": float(flat.norm()), "values": flat[places].tolist()}


# -------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    """Works in a folder elsewhere, and brings home what was made when all of it is right."""
    root = Path(cast(Any, mmprefix).__file__).parents[1]
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert head.startswith(COMMIT), f"this program runs on the code of {COMMIT} only, not on {head.strip()}"
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(HERE, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*MADE))
        os.chdir(place)
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
