"""Ways to adapt a trained model to a domain or a user, in one table: numbers, bytes, time, memory, quality, forgetting.

    python -m benchmarks.studies.users.adaptation flickr8k_mini --base runs/flickr8k_mini/model \\
        --own data/coco_mini --outside data/flickr8k_mini
    python -m benchmarks.studies.users.adaptation personal_alfred --own data/personal_alfred --users w0336fed w108ba10

Folders are those that ``mmprefix prepare`` writes. With ``--users`` the own rows are a user's and the outside is
everyone else's; without ``--base`` a model is trained on the outside first, without a branch of users. All forms start
from the base and see the same own rows, and the best epoch by validation is kept; a form's rate is its own (``FORMS``)
times each of ``--factors``, of which the best by validation loss is kept. Finished runs are not repeated.

A base that reads earlier texts of a user, in its prompt (``wording.history``, as personal_alfred_texts) or by a branch
``history``, is trained with those of each outside row, and told the own ones in one more row of the table: nothing is
trained for the user then. The forms see no such texts, for they stand in their place.

Figures: numbers trained, bytes of them in a file, CPU seconds and peak memory of the training, seconds to read the own
test texts, negative log-likelihood a word of the own and of the outside test texts (one caption a row, the adaptation
in place for both), ROUGE-L and CIDEr-D of what is written for the own test rows.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import mmprefix
from benchmarks.lib.adaptation import (
    FORMS,
    Content,
    Form,
    Row,
    Task,
    adapted_recipe,
    fit,
    make_tasks,
    plain_recipe,
    reads_histories,
)
from benchmarks.lib.report import markdown_table
from benchmarks.studies.users.personal import nll_a_word
from mmprefix.data.histories import NOBODY
from mmprefix.mappers.user_rows import UserRows
from mmprefix.metrics import caption
from mmprefix.training.optimization.train_only import trained_alone

EXAMPLES = 5
NOTHING, HISTORY, PAIRS = "nothing", "the own texts in the prompt", "own examples in the prompt"
TOLD = "the own texts, as its training showed"
UNTRAINED = (NOTHING, HISTORY, PAIRS, TOLD)
FIGURES = ("numbers", "bytes", "seconds", "memory", "read", "own", "outside", "rouge_l", "cider_d")


def trained_tensors(model: Any, form: Form) -> dict[str, torch.Tensor]:
    """Tensors that a form trained of a saved model; of a table the row of the one user."""
    tensors: dict[str, torch.Tensor] = {}
    tables = {id(part.rows) for part in model.modules() if isinstance(part, UserRows)}
    for name, parameter in trained_alone(model, form.only).items():
        tensors[name] = (parameter[-1:] if id(parameter) in tables else parameter).detach().clone()
    return tensors


def quality(model: Any, task: Task, way: str, *, write: int, batch_size: int) -> dict[str, float]:
    """Likelihoods of the own and the outside test texts, and scores of what is written for the first own rows."""
    reads = set(model.kinds)
    template = model.model.wording
    examples = task.rows("own", "train")
    random.Random(0).shuffle(examples)

    def call(rows: Sequence[Row]) -> dict[str, Any]:
        contexts = [row.get("context", "") for row in rows]
        before = ""
        if way in (HISTORY, PAIRS):
            shown = [
                template.render_prompt(row.get("context", "") if way == PAIRS else "", "") + row["captions"][0]
                for row in examples[:EXAMPLES]
            ]
            before = ("\n\n" if way == PAIRS else "\n").join(shown) + "\n"
        named: dict[str, Any] = {"user": NOBODY if way in UNTRAINED else task.name} if "user" in reads else {}
        if way == TOLD:
            named["history"] = [[row["captions"][0] for row in task.rows("own", "train")]] * len(rows)
        if model.model.reads_text:
            return named | {"context": [before + text for text in contexts]}
        return named | ({"prompt": before} if before else {})

    own, outside = task.rows("own", "test"), task.rows("outside", "test")
    began = time.process_time()
    figures = {"own": statistics.mean(nll_a_word(model, own, batch_size=batch_size, **call(own)))}
    figures["read"] = time.process_time() - began
    figures["outside"] = statistics.mean(nll_a_word(model, outside, batch_size=batch_size, **call(outside)))
    rows = own[:write]
    inputs = [{name: row[name] for name in reads & {"image", "audio"}} for row in rows]
    texts = model(inputs, batch_size=batch_size, **call(rows))
    first = [text.strip().splitlines()[0] if text.strip() else "" for text in texts]  # a prompt of lines goes on
    scores = caption(first, [row["captions"] for row in rows])
    return figures | {name: scores[name] for name in ("rouge_l", "cider_d")}


def adapt(name: str, task: Task, content: Content, options: argparse.Namespace) -> dict[str, float]:
    """Figures of one form for one task, trained unless it is finished."""
    folder = task.folder / name.replace(",", "").replace(":", "").replace(" ", "_") / f"seed{options.seed}"
    done = folder / "figures.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    form, figures = FORMS.get(name), dict.fromkeys(FIGURES, 0.0)
    saved = Path(content["model"]["start_from"])
    if form is not None:
        recipe = adapted_recipe(content, form, task, options.epochs)
        runs = {f: fit(recipe, task, "own", folder / f"{f:g}", factor=f) for f in options.factors}
        best = min(runs, key=lambda factor: runs[factor]["loss"])
        saved = folder / f"{best:g}" / "model"
        figures |= {"seconds": runs[best]["seconds"], "memory": runs[best]["memory"], "factor": best}
    model = mmprefix.load(saved)
    figures |= quality(model, task, name, write=options.write, batch_size=options.batch_size)
    if form is not None:
        tensors = trained_tensors(model.model, form)
        figures |= {"numbers": sum(tensor.numel() for tensor in tensors.values())}
        figures |= {"bytes": len(safetensors.torch.save(tensors))}
    folder.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(figures), encoding="utf-8")
    return figures


def report(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """One row a form; figures are means over users."""
    head = ["adapted by", "numbers", "bytes", "train, CPU s", "GB", "read own, CPU s"]
    head += ["own nll a word", "outside nll a word", "own ROUGE-L", "own CIDEr-D"]
    body: list[list[str]] = []
    for name, runs in results.items():
        mean = {figure: statistics.mean(run[figure] for run in runs) for figure in FIGURES}
        cells = [f"{mean['numbers']:,.0f}", f"{mean['bytes']:,.0f}", f"{mean['seconds']:.0f}", f"{mean['memory']:.1f}"]
        cells += [f"{mean['read']:.1f}", *(f"{mean[figure]:.3f}" for figure in FIGURES[5:])]
        body.append([name, *cells])
    return markdown_table(head, body)


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, float]]]:
    """Train and measure what is not finished, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="recipe of the base, such as flickr8k_mini, or a file")
    parser.add_argument("--own", type=Path, required=True, help="prepared folder to adapt to")
    parser.add_argument("--outside", type=Path, help="prepared folder that the base was trained on")
    parser.add_argument("--users", nargs="+", help="adapt to each of these users of --own instead")
    parser.add_argument("--base", type=Path, help="saved model to start from; without one it is trained first")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptation"))
    parser.add_argument("--only", nargs="+", metavar="FORM", help="begin of the names of the forms")
    parser.add_argument("--factors", nargs="+", type=float, default=[1.0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--base-epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--captions", type=int, help="of a row in an epoch; by default all")
    parser.add_argument("--rows", type=int, default=150, help="outside test rows")
    parser.add_argument("--write", type=int, default=40, help="own test rows that a text is written for")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", default="bf16-mixed")
    options = parser.parse_args(argv)
    if bool(options.users) == bool(options.outside):
        parser.error("give --outside for a domain, or --users for users")
    torch.set_num_threads(1)
    options.out = options.out.resolve()
    content = plain_recipe(options)
    tasks = make_tasks(options, histories=reads_histories(content))
    base = options.base
    if base is None:
        first = copy.deepcopy(content)
        first["trainer"]["max_epochs"] = options.base_epochs
        fit(first, tasks[0], "outside", options.out / "base")
        base = options.out / "base" / "model"
    content["model"]["start_from"] = str(base.resolve())
    names = [NOTHING, HISTORY, *([PAIRS] if any("context" in row for row in tasks[0].rows("own", "test")) else [])]
    names += [TOLD] if reads_histories(content) else []
    results: dict[str, list[dict[str, float]]] = {}
    for name in [*names, *FORMS]:
        if not options.only or name.startswith(tuple(options.only)):
            results[name] = [adapt(name, task, content, options) for task in tasks]
            print(name, results[name], flush=True)
    print(report(results))
    return results


if __name__ == "__main__":
    main()
