"""Pictures, sounds and manifests to train the models of this folder on; ``make.py`` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image, ImageDraw

RATE = 16000
PICTURES = {
    "a large red circle in the centre": ((210, 30, 30), "ellipse", (12, 12, 52, 52)),
    "a small green square in the top left": ((30, 170, 40), "rectangle", (4, 4, 22, 22)),
    "a blue square to the left of a green circle": ((40, 50, 220), "rectangle", (2, 22, 30, 50)),
    "a large yellow ring in the bottom right": ((230, 210, 40), "ellipse", (22, 22, 62, 62)),
}
HILLS = ("the cat runs over a green hill.", "a dog barks.", "some rain falls on the old roof.", "a bell rings twice.")
SOUNDS = {  # caption by the shipped decoder: caption by the small one, Hz, seconds
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


def make_data() -> None:
    """Write four pictures, four sounds, and the manifests over them, below ``data``."""
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
        ("bells", "audio", [text for text, _, _ in SOUNDS.values()]),
    ):
        files = zip(names[kind], captions, strict=True)
        write_rows(name, [{"id": f"{name}{n}", kind: f, "caption": c} for n, (f, c) in enumerate(files)])
    orders = [
        {
            "id": f"order{n}", "audio": f"{n}.wav", "intent": intent, "slots": slots, "label": label,
            "transcript": text, "signals": [float(n % 3), 1.0 if label == "true" else 0.25],
        }
        for n, (intent, slots, label, text) in enumerate(ORDERS)
    ]  # fmt: skip
    write_rows("orders", orders)
    words = sorted({word for text, _, _ in SOUNDS.values() for word in text.split()} - {"."})
    Path("data/words.txt").write_text("\n".join(["!", *words, ".", "<eos>"]) + "\n")


def write_rows(name: str, rows: list[dict[str, Any]]) -> None:
    """Write data/NAME.jsonl."""
    Path(f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
