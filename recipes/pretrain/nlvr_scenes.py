"""Facts of an NLVR scene, read off its structure: the labels of a small encoder of pictures.

NLVR (Suhr et al. 2017, https://lil.nlp.cornell.edu/nlvr/) gives the shapes of each drawn scene: three boxes of up to
eight items with colour, type, size and place. A tag is a fact that a writer may state: the item at the top or the
bottom of a tower, the number of items of a colour, an item at an edge; and of each, the number of boxes it holds in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_COLOURS = {"#0099ff": "blue"}
_SIDE = 100  # a box is 100 units wide and high; y counts downwards


def _colour(item: dict[str, Any]) -> str:
    name = str(item["color"])
    return _COLOURS.get(name, name.lower())


def is_tower(items: list[dict[str, Any]]) -> bool:
    """Test for equal squares that are stacked in one column."""
    return (
        all(item["type"] == "square" for item in items) and len({(item["x_loc"], item["size"]) for item in items}) == 1
    )


def box_tags(items: list[dict[str, Any]]) -> set[str]:
    """Tags of one box."""
    tags = {f"{len(items)} items", f"{len({_colour(item) for item in items})} colours"}
    if items and is_tower(items):
        stack = [_colour(item) for item in sorted(items, key=lambda item: item["y_loc"])]
        tags |= {"tower", f"{stack[0]} top", f"{stack[-1]} base", f"tower of {len(stack)}"}
        tags |= {f"{above} on {below}" for above, below in pairwise(stack)}
    counts = Counter(_colour(item) for item in items) + Counter(f"{_colour(item)} {item['type']}" for item in items)
    counts += Counter(item["type"] for item in items)
    tags |= {f"{count} {name}" for name, count in counts.items()}
    return tags | {f"{_colour(item)} {item['type']} at edge" for item in items if at_edge(item)}


def at_edge(item: dict[str, Any]) -> bool:
    """Test for an item that touches a side of its box."""
    x, y, size = item["x_loc"], item["y_loc"], item["size"]
    return min(x, y) <= 0 or max(x, y) + size >= _SIDE


def scene_tags(boxes: list[list[dict[str, Any]]]) -> set[str]:
    """Tags of a scene: ``"TAG in N or more"`` boxes, for every N up to the number of boxes with that tag."""
    counts = Counter(tag for box in boxes for tag in box_tags(box))
    return {f"{tag} in {least} or more" for tag, count in counts.items() for least in range(1, count + 1)}


def read_tags(structured: Path, ids: Iterable[str]) -> dict[str, set[str]]:
    """Read the tags of the scenes ``ids`` (a manifest's ids, whose last number is only the order of the boxes)."""
    wanted = {name: name.rsplit("-", 1)[0] for name in ids}
    with structured.open(encoding="utf-8") as lines:
        scenes = {row["id"]: row["boxes"] for row in map(json.loads, lines)}
    return {name: scene_tags(scenes[scene]) for name, scene in wanted.items()}


def shuffle_boxes(pixels: Tensor) -> Tensor:
    """Shuffle the three square boxes of a picture (3 Y 4·Y), half a box apart, and mirror each or not.

    Every tag of the scene stays true.
    """
    side = pixels.shape[1]
    out = pixels.clone()
    for index, box in enumerate(torch.randperm(3).tolist()):
        taken = pixels[:, :, box * side * 3 // 2 :][:, :, :side]
        out[:, :, index * side * 3 // 2 :][:, :, :side] = taken.flip(2) if torch.rand(()) < 0.5 else taken
    return out
