"""Plot of the methods: saved numbers against test loss, an SVG file. Needs matplotlib."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plot_methods(results: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Write ``file``: each method at its saved numbers and its mean loss a token, both on a logarithmic scale."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "mmprefix"  # equal results, equal bytes
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes: Any = figure.subplots()
    for family, colour in (("peft", "tab:orange"), ("beside", "tab:gray"), ("ours", "tab:blue")):
        names = [name for name in results if _family(name) == family]
        points = [(results[name]["numbers"], statistics.mean(results[name]["loss"])) for name in names]
        if points:
            axes.scatter(*zip(*points, strict=True), color=colour, s=18)
        for name, (numbers, loss) in zip(names, points, strict=True):
            label = name.removeprefix("peft_").replace("_", " ")
            axes.annotate(label, (numbers, loss), xytext=(4, 3), textcoords="offset points", fontsize=7, color=colour)
    axes.set(xscale="log", yscale="log", xlabel="saved numbers", ylabel="test loss a token (lower is better)")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(file, metadata={"Date": None, "Creator": None})


def _family(name: str) -> str:
    return "peft" if name.startswith("peft_") else "beside" if name in ("lora", "full_fine_tuning") else "ours"
