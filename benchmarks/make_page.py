"""Maker of docs/performance.md and its plots from the results of the benchmarks.

    python -m benchmarks.make_page

Reads ``benchmarks/results/NAME.json``; without that file a section says "Not measured."
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lib.report import join_versions
from benchmarks.lib.timing import main_clock

ROOT = Path(__file__).resolve().parents[1]


class PageSection(NamedTuple):
    """A section of the page: heading, script, name of its JSON file, the command's options, and how to read it."""

    heading: str
    script: str
    name: str
    options: str
    reading: str


SECTIONS = [
    PageSection(
        "A training step, five captions an input",
        "train_step",
        "train_step_transformer5",
        "--mapper transformer --prefix-length 40 --captions 5 --batch 30 --threads 1 --extra-variants recompute "
        "--repeat 3",
        "ClipCap's transformer mapper. `x` is a variant's CPU time over mmprefix's; the limit is the operations "
        "that an exact step cannot do without, at the rate of the fastest plain matrix product of the same run. All "
        "variants compute the same loss and gradients.",
    ),
    PageSection(
        "The same on two threads",
        "train_step",
        "train_step_threads2",
        "--mapper transformer --prefix-length 40 --captions 5 --batch 30 --threads 2 --repeat 3",
        "Wall time; the limit is taken at the rate of two threads.",
    ),
    PageSection(
        "One caption an input",
        "train_step",
        "train_step_transformer1",
        "--mapper transformer --prefix-length 40 --captions 1 --batch 30 --threads 1 --repeat 3",
        "There is no prefix to share. The gain comes from a frozen model without gradients into its weights, "
        "batches of like length, logits at target tokens only, and a last layer that runs only at positions that "
        "are read.",
    ),
    PageSection(
        "ClipCap's MLP",
        "train_step",
        "train_step_mlp5",
        "--mapper mlp --prefix-length 10 --captions 5 --batch 40 --threads 1 --repeat 3",
        "A short prefix: most of the work is the captions' own.",
    ),
    PageSection(
        "Prefix-AAC",
        "train_step",
        "train_step_prefix_aac",
        "--mapper prefix_aac --captions 5 --batch 75 --threads 1 --repeat 3",
        "The step of `recipes/prefix_aac_audiocaps.yaml` with cached features: 15 frames of 4096 values and a "
        "summary of 527 become 15 + 11 positions, a trained head predicts 7911 whole words. Dropout is off, so that "
        "all variants compute the same.",
    ),
    PageSection(
        "A pretrained grouped-query model: a training step",
        "train_step",
        "train_step_smollm2",
        "--model models:smollm2-135m-instruct --mapper mlp --prefix-length 10 --captions 5 --batch 30 --pool 0 "
        "--threads 1 --repeat 3",
        "SmolLM2-135M behind ClipCap's MLP. Hugging Face's row is the careful way with "
        "Transformers' own model: a row a caption, padded to the longest of the batch, frozen weights. ClipCap's "
        "code pads to the longest caption of all data and computes gradients into the frozen weights too, as a model "
        "does as it is loaded. With so short a prefix most of the work is the captions' own, which each way has to do. "
        "The aim was three times the careful way; exact work at the rate of a plain product would be 3.5 times.",
    ),
    PageSection(
        "How the gain changes",
        "scaling",
        "scaling",
        "--repeat 3",
        "One size varied at a time; `x` is the naive step's CPU time over mmprefix's.",
    ),
    PageSection(
        "Writing captions",
        "generate",
        "generate",
        "--batches 1 8 32 --beams 5 1 --repeat 3 --naive",
        "Against Hugging Face's `generate` on the same weights, from the same 40 prefix embeddings, 25 tokens; "
        "texts are compared.",
    ),
    PageSection(
        "A pretrained grouped-query model: writing captions",
        "generate",
        "generate_smollm2",
        "--model models:smollm2-135m-instruct --prefix-length 10 --new-tokens 20 --batches 1 8 --beams 1 5 --repeat 3",
        "SmolLM2-135M: nine query heads share three pairs of keys and values. Hugging Face's `generate` on the same "
        "weights, from the same prefixes. Greedy search of one text gains nothing: a token reads all weights once, "
        "whichever program asks, and that is 71 % of the memory's rate. The aims were 1.1 times for greedy search and "
        "1.6 for five beams of eight texts; shared beams save the keys and values of a prefix of ten, which three "
        "pairs of heads keep small, so that products with the weights are nearly all of the work. Reached before on "
        "another machine: 1.43 (greedy, 8), 1.89 and 1.58 (five beams).",
    ),
    PageSection(
        "Memory of a training step",
        "memory",
        "memory",
        "",
        "Peak resident memory, each in a process of its own, weights and libraries included; then the memory that "
        "the step adds to a process whose weights are loaded.",
    ),
    PageSection(
        "Reading the feature store",
        "feature_store",
        "feature_store",
        "",
        "One random entry, read by its key and copied, against a bare memory map of as many numbers; all files in "
        "the page cache. Memory is the proportional set size beyond that of a process without a store.",
    ),
    PageSection(
        "A second epoch",
        "encode",
        "encode",
        "--pictures 48 --repeat 2",
        "A whole training by the command line: pictures decoded, ViT-B/32's sizes, GPT-2 small's, ClipCap's MLP.",
    ),
    PageSection(
        "On a GPU: a training step",
        "train_step",
        "train_step_gpu",
        "--device cuda --dtype bfloat16 --captions 5 --batch 300 --repeat 9",
        "The frozen model in bfloat16, the mapper in autocast, in all variants; wall time, memory of the GPU. At "
        "these sizes a step is limited by kernel launches, not by the GPU: in a profile kernels ran for a quarter "
        "of the time. Layers compiled by `torch.compile` (`model.compile`, here `--extra-variants compile`) took "
        "1.07 times as long, so it is not recommended. At 1,500 captions the naive step runs out of the card's 79 "
        "GiB.",
    ),
    PageSection(
        "On a GPU: writing captions",
        "generate",
        "generate_gpu",
        "--device cuda --dtype bfloat16 --batches 1 8 32 128 --repeat 7 --naive",
        "Steps are recorded as a CUDA graph and replayed (`mmprefix.fast.cuda_graph`); Hugging Face's `generate` as "
        "it comes. In bfloat16 two orders of summation differ in the third digit, and texts of random weights "
        "diverge where two tokens are nearly as likely; in float32 on the same card all texts were equal (batches "
        "of 1 and 8).",
    ),
    PageSection(
        "On a GPU: a second epoch",
        "encode",
        "encode_gpu",
        "--pictures 192 --batch 80 --repeat 3 --accelerator gpu --precision bf16-mixed",
        "As above. Without a store, decoding the files on one core takes the time.",
    ),
    PageSection(
        "Start-up",
        "startup",
        "startup",
        "--model runs/quickstart/model --file runs/quickstart/samples/audio-0000.wav --repeat 5",
        "Fresh processes; the last rows are imports of the libraries alone. Any model of Transformers imports its "
        "losses, those torchvision, and that torch's compiler: 1.8 s that no caption needs and no import of ours "
        "asks for.",
    ),
    PageSection(
        "Does it change what is learned?",
        "studies.sharing",
        "sharing",
        "../shared/data --sets esc10 coco_mini --seeds 0 1 2",
        "An input with all its captions and one prefix, against a prefix for each caption, at equal captions a step "
        "and in total; and features stored as float16 or float32, or not at all. On ESC-10 no figure changes more "
        "than between seeds. On `coco_mini` the loss is the same too; CIDEr-D there says nothing, since the small "
        "model does not see its pictures (it is no better than with other pictures' prefixes). Stored float32 "
        "features give bit-identical results, float16 change the loss in its fifth digit or later, and CIDEr-D not "
        "at all.",
    ),
]


def render_section(section: PageSection, folder: Path) -> tuple[str, dict[str, Any] | None]:
    """Text of a section, and the results that it shows."""
    file = folder / f"{section.name}.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    body = "Not measured."
    if results is not None:
        body = importlib.import_module(f"benchmarks.{section.script}").report(results)
        if join_versions(results) not in body:
            body += f"\n\n{join_versions(results)}"
    command = f"    python -m benchmarks.{section.script} {section.options}".rstrip()
    return f"## {section.heading}\n\n{command}\n\n{section.reading}\n\n{body}\n", results


def plot_steps(results: dict[str, Any], file: Path) -> None:
    """Draw bars: seconds of each variant of a training step."""
    from matplotlib.figure import Figure

    rows = [row for row in results["variants"] if row["steps"] == 1]
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    clock = main_clock(results["options"])
    axes.barh([row["variant"] for row in rows], [row[f"{clock}_median"] for row in rows])
    axes.axvline(results["limit"]["seconds"], linestyle="--", color="black")
    axes.invert_yaxis()
    axes.set_xlabel(f"{'CPU seconds' if clock == 'cpu' else 'seconds'} a step (dashed: the limit)")
    save_plot(figure, file)


def plot_generation(results: dict[str, Any], file: Path) -> None:
    """Draw lines: milliseconds a text by batch size."""
    from matplotlib.figure import Figure

    clock = main_clock(results["options"])
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, beams in zip(figure.subplots(1, 2), (5, 1), strict=True):
        cases = [case for case in results["cases"] if case["beams"] == beams]
        for side in ("mmprefix", "Hugging Face"):
            milliseconds = [1000 * case[side][f"{clock}_median"] / case["batch"] for case in cases]
            axes.plot([case["batch"] for case in cases], milliseconds, marker="o", label=side)
        axes.set(xscale="log", xlabel="batch", title=f"beam {beams}" if beams > 1 else "greedy", ylim=(0, None))
        axes.legend()
    figure.axes[0].set_ylabel("CPU ms a text" if clock == "cpu" else "ms a text")
    save_plot(figure, file)


def plot_scaling(results: dict[str, Any], file: Path) -> None:
    """Draw lines: the ratio over each size that is varied."""
    from matplotlib.figure import Figure

    sweeps = results["sweeps"]
    figure = Figure(figsize=(2.6 * len(sweeps), 2.6), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(sweeps), squeeze=False)[0], sweeps.items(), strict=True):
        sizes = [f"{point['layers']} x {point['width']}" if name == "decoder" else point[name] for point in points]
        axes.plot(sizes, [point["ratio"] for point in points], marker="o")
        axes.set(xlabel=name, ylim=(0, None))
    figure.axes[0].set_ylabel("naive / mmprefix")
    save_plot(figure, file)


def save_plot(figure: Any, file: Path) -> None:
    """Write an SVG without dates, so that equal figures give equal bytes."""
    figure.savefig(file, metadata={"Date": None, "Creator": None})


PLOTS = {
    "train_step_transformer5": plot_steps,
    "train_step_gpu": plot_steps,
    "generate": plot_generation,
    "generate_gpu": plot_generation,
    "scaling": plot_scaling,
}


def write_page(folder: Path, target: Path) -> None:
    """Write the page of the results in ``folder``, and its plots into a folder beside the page."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "mmprefix"
    plots = target.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    text = [
        "# Performance\n",
        "This page is made by `python -m benchmarks.make_page` from the JSON files in `benchmarks/results`;",
        "[benchmarks/README.md](../benchmarks/README.md) says how to read the figures. One thread, CPU time, "
        "medians of interleaved\nruns, on a CPU with two cores, unless a section says GPU; random weights of GPT-2 "
        "small's sizes unless a table says\notherwise.\n",
    ]
    for section in SECTIONS:
        body, results = render_section(section, folder)
        text.append(body)
        if results is not None and section.name in PLOTS:
            PLOTS[section.name](results, plots / f"{section.name}.svg")
            text.append(f"![{section.heading}]({plots.name}/{section.name}.svg)\n")
    target.write_text("\n".join(text), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "performance.md")
    options = parser.parse_args(arguments)
    write_page(options.results, options.out)


if __name__ == "__main__":
    main()
