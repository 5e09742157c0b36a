"""Draws docs/line.svg, the picture of the README: what is frozen, what is trained, what goes from one to the next.

python docs/draw_line.py docs/line.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

FROZEN, TRAINED, INK = "#dbeafe", "#fed7aa", "#1f2937"
BOXES = [  # x, width, fill, title, below it, state
    (146, 166, FROZEN, "encoder", "CLIP, ViT, CLAP, Whisper,", "wav2vec 2.0, AST ...", "frozen"),
    (372, 120, TRAINED, "mapper", "MLP, transformer,", "resampler, linear ...", "trained"),
    (564, 190, FROZEN, "language model", "GPT-2, OPT, LLaMA, Qwen:", "reads the prefix once", "frozen"),
]
HEIGHTS = [2, 7, 14, 22, 9, 17, 25, 12, 20, 8, 15, 5, 9, 3]  # of the waveform
ARROWS = [(108, 146, ""), (312, 372, "features"), (492, 564, "prefix"), (754, 800, "")]


def text(x: float, y: float, words: str, size: int = 13, *, weight: str = "400", anchor: str = "middle") -> str:
    """One line of text as SVG."""
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{INK}"'
    return f'<text x="{x}" y="{y}" {style}>{words}</text>'


def svg() -> str:
    """The whole picture, 1000 x 190."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 190" font-family="Helvetica, Arial, sans-serif">',
        '<rect width="1000" height="190" fill="white"/>',
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>',
    ]
    wave = " ".join(f"{24 + 4 * i},{62 + (-1) ** i * h}" for i, h in enumerate(HEIGHTS))
    parts += [f'<polyline points="{wave}" fill="none" stroke="{INK}" stroke-width="2"/>', text(50, 104, "sound")]
    parts += [
        f'<rect x="28" y="118" width="46" height="34" fill="none" stroke="{INK}" stroke-width="2"/>',
        f'<path d="M30 150 L44 132 L54 143 L62 136 L72 150 z" fill="{INK}"/>',
        f'<circle cx="63" cy="127" r="4" fill="{INK}"/>',
        text(50, 170, "picture"),
    ]
    for x, width, fill, title, first, second, state in BOXES:
        middle = x + width / 2
        parts += [
            f'<rect x="{x}" y="55" width="{width}" height="92" rx="10" fill="{fill}" stroke="{INK}"/>',
            text(middle, 84, title, 17, weight="700"),
            text(middle, 109, first, 11),
            text(middle, 125, second, 11),
            text(middle, 165, state, 12, weight="700" if state == "trained" else "400"),
        ]
    for start, end, words in ARROWS:
        line = f'x1="{start}" y1="101" x2="{end}" y2="101" stroke="{INK}" stroke-width="2"'
        parts.append(f'<line {line} marker-end="url(#tip)"/>')
        parts.append(text((start + end) / 2, 90, words, 12))
    parts += [
        text(810, 97, "“a dog barks while", 14, anchor="start"),
        text(810, 115, "rain is falling”", 14, anchor="start"),
    ]
    parts.append(text(432, 36, "all that a checkpoint holds", 11))
    parts.append(f'<path d="M372 46 L372 42 L492 42 L492 46" fill="none" stroke="{INK}"/>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/line.svg").write_text(svg(), encoding="utf-8")
