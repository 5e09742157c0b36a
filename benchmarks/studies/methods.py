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
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.methods.plot import plot_methods
from benchmarks.lib.methods.runs import FIGURES, Content, best_of, fit, method_names, rate_of, read, with_rate
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
SOURCE = ["--data.manner", "plain"]  # the task that transferred prefixes come from
STARTS = ("Normal", "Zeros", "Words", "TextTokens")


def source_model(options: argparse.Namespace, content: Content) -> str:
    """Saved model of the same prefix, trained on plain captions first."""
    source = {"model": {name: value for name, value in content["model"].items() if name in ("prefix", "optimizer")}}
    folder = options.out / "sources" / content["model"]["prefix"]["class_path"].rpartition(".")[2]
    fit(source, folder, more=[*SOURCE, "--data.directory", str(options.out / "plain")])
    return str((folder / "model").resolve())


def run_method(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one method."""
    folder, seeds = options.out / name, list(range(options.seeds))
    if name in PEFT:
        from benchmarks.lib.methods.peft_rows import best_of_peft

        return best_of_peft(name, options.out, factors=options.factors, seeds=seeds)
    content = BESIDE[name] if name in BESIDE else read(name)
    if content["model"].get("start_from"):
        saved = source_model(options, content)
        content["model"]["start_from"] = saved
        content["model"]["objective"]["init_args"]["teacher"] = saved
    return best_of(content, folder, factors=options.factors, seeds=seeds)


def in_own_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of a method that runs in a process of its own, with its peak memory in MB."""
    done = options.out / f"{name}.json"
    if not done.is_file():
        words = [sys.executable, "-m", "benchmarks.studies.methods", "--one", name, "--out", str(options.out)]
        words += ["--factors", *map(str, options.factors), "--seeds", str(options.seeds)]
        with (options.out / f"{name}.txt").open("w", encoding="utf-8") as output:
            process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
            _, code, used = os.wait4(process.pid, 0)
        part = options.out / f"{name}.part.json"
        if code or not part.is_file():
            print(f"{name}: failed, see {output.name}", flush=True)
            return {}
        figures = json.loads(part.read_text(encoding="utf-8")) | {"memory": used.ru_maxrss / 1024}
        done.write_text(json.dumps(figures), encoding="utf-8")
        part.unlink()
    return json.loads(done.read_text(encoding="utf-8"))


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
        for start in STARTS:
            content = read(name)
            args: Content = {"text": "first a large red circle and then a small blue square"}
            own: Content = {"class_path": f"mmprefix.mappers.starts.{start}"}
            content["model"]["prefix"]["init_args"]["start"] = own | ({"init_args": args} if "Text" in start else {})
            for factor in options.factors:
                rate = rate_of(content) * factor
                folder = options.out / "starts" / f"{name}-{start}-{factor:g}"
                results[f"{name}, {start}, {rate:g}"] = fit(with_rate(content, rate), folder)
    return results


def grid_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """One row a method, start and rate."""
    body = [[*name.split(", "), *(f"{figures[key]:.3f}" for key in FIGURES)] for name, figures in results.items()]
    return markdown_table(["method", "start", "rate", "loss", "exact match", "CIDEr-D"], body)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not finished, and print the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="recipes, lora, full_fine_tuning, peft_lora ...")
    parser.add_argument("--factors", nargs="+", type=float, default=[1.0, 4.0, 16.0], help="of each method's own rate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--starts", action="store_true", help="the grid of starts and rates instead")
    parser.add_argument("--plot", type=Path, help="SVG file for a plot of saved numbers and loss (needs matplotlib)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if options.one:
        figures = run_method(options.one, options)
        (options.out / f"{options.one}.part.json").write_text(json.dumps(figures), encoding="utf-8")
        return
    if options.starts:
        grid = start_grid(options)
        publish({"versions": versions(), "starts": grid}, grid_table(grid), options.json)
        return
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
