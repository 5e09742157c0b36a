"""All prefix methods on one frozen decoder, same rows and steps, each at its best rate: ``docs/methods.md``.

    python -m benchmarks.studies.methods --out runs/methods --json benchmarks/results/methods.json
    python -m benchmarks.studies.methods --only lopt residual_prompt
    python -m benchmarks.studies.methods --starts

Every file of ``recipes/methods`` is a method, trained over ``base.yaml`` at its own rate times each of ``--factors``;
the best by validation loss is trained with ``--seeds`` seeds. Beside them stand LoRA and full fine-tuning of the same
decoder, and peft's own prompt tuning, P-tuning, prefix tuning and LoRA (``benchmarks/lib/methods``). Each runs
in a process of its own, whose peak memory is taken. Finished runs are not repeated.

Figures: exact matches, CIDEr-D and loss a token on 200 test rows of unseen combinations (mean, and half the range over
seeds), CPU seconds of a training, peak memory, saved numbers, bytes of their file, CPU seconds of fifty greedy
captions. ``--starts`` trains prompt tuning and a deep prefix from each start at each rate instead.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.methods.plot import plot_methods
from benchmarks.lib.methods.runs import FIGURES, Content, Figures, best_of, fit, method_names, rate_of, read, with_rate
from benchmarks.lib.report import benchmark_parser, markdown_table, publish, versions

ADAMW = "torch.optim.AdamW"
BESIDE: dict[str, Content] = {
    "lora": {
        "model": {
            "decoder": {"init_args": {"lora_rank": 4}},
            "optimizer": {"class_path": ADAMW, "init_args": {"lr": 1e-3}},
        }
    },
    "full_fine_tuning": {
        "model": {
            "decoder": {"init_args": {"frozen": False}},
            "optimizer": {"class_path": ADAMW, "init_args": {"lr": 1e-4}},
        }
    },
}
PEFT = ("peft_prompt_tuning", "peft_p_tuning", "peft_prefix_tuning", "peft_lora")
HALF = ["--trainer.max_epochs", "10"]
STARTS: dict[str, Content] = {
    "N(0, 0.02)": {"class_path": "Normal", "init_args": {"std": 0.02}},
    "N(0, 1)": {"class_path": "Normal", "init_args": {"std": 1.0}},
    "zeros": {"class_path": "Zeros"},
    "words": {"class_path": "Words"},
    "text": {
        "class_path": "TextTokens",
        "init_args": {"text": "first a large red circle and then a small blue square"},
    },
}


def source_of(name: str, content: Content, out: Path) -> tuple[str, Figures]:
    """Saved model that a training begins with, and its figures: panda on plain captions, a start by half the steps."""
    folder = out / "sources" / f"{name}-{rate_of(content):g}"
    if name == "panda":
        source = {"model": {part: content["model"][part] for part in ("prefix", "optimizer")}}
        figures = fit(source, folder, more=["--data.manner", "plain", "--data.directory", str(out / "plain")])
    else:
        figures = fit(content, folder, more=HALF)
    return str((folder / "model").resolve()), figures


def run_of(name: str, out: Path) -> Callable[[float, int], Figures]:
    """Training of a method at a rate with a seed, in a folder of its own."""
    if name in PEFT:
        from benchmarks.lib.methods.peft_rows import fit_peft

        return lambda rate, seed: fit_peft(name, out / name / f"rate{rate:g}-seed{seed}", rate, seed)
    content = BESIDE[name] if name in BESIDE else read(name)

    def run(rate: float, seed: int) -> Figures:
        recipe, folder = with_rate(content, rate), out / name / f"rate{rate:g}-seed{seed}"
        if name == "panda":
            recipe["model"]["start_from"] = saved = source_of(name, recipe, out)[0]
            recipe["model"]["objective"]["init_args"]["teacher"] = saved
        if name != "meta_start":
            return fit(recipe, folder, seed=seed)
        saved, before = source_of(name, content, out)  # then prompt tuning, in the other half of the steps
        recipe["model"] = {part: recipe["model"][part] for part in ("prefix", "optimizer")} | {"start_from": saved}
        figures = fit(recipe, folder, seed=seed, more=HALF)
        return figures | {"seconds": before["seconds"] + figures["seconds"]}

    return run


def rates_of(name: str, options: argparse.Namespace) -> list[float]:
    """Rates to try: the one that earlier results of ``--known`` found best, or the method's own times ``--factors``."""
    file = json.loads(options.known.read_text(encoding="utf-8")) if options.known else {}
    known = {**file.get("like_length", {}), **file.get("methods", {})}  # the former: rows whose batches were not mixed
    if name in known:
        return [known[name]["rate"]]
    if name in PEFT:
        from benchmarks.lib.methods.peft_rows import CONFIGS

        own = CONFIGS[name][0]
    else:
        own = rate_of(BESIDE[name] if name in BESIDE else read(name))
    return [own * factor for factor in options.factors]


def run_method(name: str, options: argparse.Namespace) -> None:
    """Train what is missing of a method, in a process of its own, and write its figures."""
    result = options.out / f"{name}.json"
    with (options.out / f"{name}.txt").open("a", encoding="utf-8") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    figures = best_of(run_of(name, options.out), rates_of(name, options), list(range(options.seeds)))
    result.write_text(json.dumps(figures), encoding="utf-8")


def in_own_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of a method; {} where it failed."""
    result = options.out / f"{name}.json"
    result.unlink(missing_ok=True)
    child = get_context("fork").Process(target=run_method, args=(name, options))
    child.start()
    child.join()
    if child.exitcode or not result.is_file():
        print(f"{name}: failed, see {options.out / name}.txt", flush=True)
        return {}
    return json.loads(result.read_text(encoding="utf-8"))


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and half the range where there are several."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.{digits}f}"


def report(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a method, the lowest test loss first."""
    head = ["method", "rate", "exact match", "CIDEr-D", "loss", "CPU s", "MB", "numbers", "bytes", "write, CPU s"]
    ordered = sorted(results, key=lambda name: statistics.mean(results[name]["loss"]))
    body: list[list[str]] = []
    for name in ordered:
        r = results[name]
        cells = [f"{r['rate']:g}", spread(r["exact_match"]), spread(r["cider_d"], 2), spread(r["loss"])]
        cells += [f"{statistics.mean(r['seconds']):.0f}", f"{r['memory']:.0f}", f"{r['numbers']:,}", f"{r['bytes']:,}"]
        body.append([name.replace("_", " "), *cells, f"{r['generation']:.2f}"])
    return markdown_table(head, body)


def start_grid(options: argparse.Namespace) -> dict[str, Any]:
    """Test loss and exact matches of two methods from each start at each rate."""
    results: dict[str, Any] = {}
    for name in ("prompt_tuning", "p_tuning_v2"):
        for start, part in STARTS.items():
            content = read(name)
            own = part | {"class_path": f"mmprefix.mappers.starts.{part['class_path']}"}
            content["model"]["prefix"]["init_args"]["start"] = own
            for factor in options.factors:
                rate = rate_of(content) * factor
                folder = options.out / "starts" / f"{name}-{start}-{rate:g}".replace(" ", "")
                figures = fit(with_rate(content, rate), folder)
                results[f"{name}; {start}; {rate:g}"] = figures
                print(name, start, f"{rate:g}", f"loss {figures['loss']:.3f}", flush=True)
    return results


def grid_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """One row a method, start and rate."""
    body = [[*name.split("; "), *(f"{figures[key]:.3f}" for key in FIGURES)] for name, figures in results.items()]
    return markdown_table(["method", "start", "rate", "loss", "exact match", "CIDEr-D"], body)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not finished, and print the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="recipes, lora, full_fine_tuning, peft_lora ...")
    parser.add_argument("--factors", nargs="+", type=float, default=[1.0, 4.0, 16.0], help="of each method's own rate")
    parser.add_argument("--known", type=Path, metavar="JSON", help="earlier results: their best rates, no search")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--starts", action="store_true", help="the grid of starts and rates instead")
    parser.add_argument("--plot", type=Path, help="SVG file for a plot of saved numbers and loss (needs matplotlib)")
    options = parser.parse_args(argv)
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if options.starts:
        grid = start_grid(options)
        publish({"versions": versions(), "starts": grid}, grid_table(grid), options.json)
        return
    importlib.import_module("mmprefix.training.task")  # once, before the processes part
    results: dict[str, dict[str, Any]] = {}
    for name in options.only or [*method_names(), *BESIDE, *PEFT]:
        if figures := in_own_process(name, options):
            results[name] = figures
            print(name, f"exact match {spread(figures['exact_match'])}, loss {spread(figures['loss'])}", flush=True)
    if options.plot:
        plot_methods(results, options.plot)
    publish({"versions": versions(), "methods": results}, report(results), options.json)


if __name__ == "__main__":
    main()
