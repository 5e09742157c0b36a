"""Every recipe of ``recipes/methods`` trains on the common base, is saved, and writes the same when it is loaded."""

from __future__ import annotations

import ast
import csv
import json
import re
from pathlib import Path

import pytest

import mmprefix
from mmprefix.cli.main import main
from mmprefix.decoders import CausalDecoder

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "methods"
METHODS = sorted(file.stem for file in FOLDER.glob("*.yaml") if file.stem != "base")
ROOT = FOLDER.parents[1]
METHOD = re.compile(r"mmprefix\.((?:mappers|training\.methods|training\.optimization)\.\w+|encoders\.prompted)\.[A-Z]")
SHARED = {"mappers.starts", "mappers.parallel", "mappers.mlp"}  # parts of several recipes, no method's own file
NO_RECIPE = (  # methods that are no part of a training, or are trained by programs
    "decoders.state_space.state_offset", "distillation.outlier_prefix", "generation.drafting.bita",
    "generation.several.air_decoding", "generation.several.guidance", "generation.several.strongest",
    "inference.prefixes.online_prompts", "inference.prefixes.robust", "mappers.compressed",
)  # fmt: skip
REAL = re.compile(r"\bmodels:([\w.-]+)")


def fit(name: str, folder: Path, *more: str) -> Path:
    """Two steps of a method on sixteen rows → the saved model."""
    data = ["--data.directory", str(folder / "data"), "--data.scenes", "16", "--data.batch_size", "8"]
    data += ["--data.val_scenes", "4", "--data.test_scenes", "2", "--data.eval_batch_size", "4"]
    run = ["--trainer.default_root_dir", str(folder / "run"), "--trainer.max_epochs", "1"]
    run += ["--trainer.check_val_every_n_epoch", "1", "--test_after_fit", "false", "--trainer.accelerator", "cpu"]
    saved = folder / "model"
    configs = [word for file in ("base", name) for word in ("--config", str(FOLDER / f"{file}.yaml"))]
    assert main(["fit", *configs, *data, *run, "--save_to", str(saved), *more]) == 0
    return saved


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_is_saved(name: str, tmp_path: Path, real_model: object) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    for part in REAL.findall(text):
        real_model(part)  # type: ignore[operator]
    more: list[str] = []
    if "start_from: " in text.split("\nmodel:")[1]:  # a prefix of the same kind, trained before
        source = str(fit("p_tuning_v2", tmp_path / "source", "--model.prefix.init_args.length", "20"))
        more = ["--model.start_from", source, "--model.objective.init_args.teacher", source]
    model = mmprefix.load(fit(name, tmp_path, *more))
    rows = [json.loads(line) for line in (tmp_path / "data" / "val.jsonl").read_text().splitlines()]
    inputs = [{kind: row[kind] for kind in model.kinds} for row in rows]
    texts = [row["captions"][0] for row in rows]
    decoder = model.model.decoder
    assert isinstance(decoder, CausalDecoder)
    tokens = [len(decoder.codec.target_ids("\n", text)) for text in texts]
    scores = model.score(inputs, texts, context=[row["context"] for row in rows])
    (metrics,) = (tmp_path / "run").rglob("metrics.csv")
    with metrics.open() as lines:
        (logged,) = [float(row["val/loss"]) for row in csv.DictReader(lines) if row["val/loss"]]
    assert -sum(scores) / sum(tokens) == pytest.approx(logged, rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_says_what_is_known(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    head = text.split("\nmodel:")[0]
    assert re.match(r"# .{10,}\.\n#\n# Paper: ", head)
    assert "https://arxiv.org/abs/" in head
    assert "# Chosen: " in head


def named_in(recipe: str) -> set[str]:
    """Modules of the methods that a recipe names."""
    lines = (FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()
    return set(METHOD.findall("\n".join(line for line in lines if not line.startswith("#")))) - SHARED


def source_of(module: str) -> Path:
    """File of a module of the package; mappers and encoders lie beside it."""
    name = f"{module.replace('.', '/')}.py"
    return next(file for file in (ROOT / name, ROOT / "mmprefix" / name) if file.is_file())


RECIPES = [*METHODS, *(f"speech/{file.stem}" for file in (FOLDER / "speech").glob("*.yaml"))]
FILES = sorted({module for name in RECIPES for module in named_in(name)} | {*NO_RECIPE})


@pytest.mark.parametrize("module", FILES)
def test_a_methods_file_is_short_has_a_link_and_imports_no_others(module: str) -> None:
    text = source_of(module).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    tree = ast.parse(text)
    assert "https://" in (ast.get_docstring(tree) or "")
    imported = {node.module.removeprefix("mmprefix.") for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and node.module}  # fmt: skip
    others = {other for other in FILES if other != module and other.rpartition(".")[2] != module.rpartition(".")[2]}
    halves = {"training.methods.lae": {"mappers.online_offline"}}  # a mapper, and what trains it
    assert not imported & (others - halves.get(module, set()))


@pytest.mark.parametrize("name", METHODS)
def test_the_file_of_a_method_is_opened_by_the_title_of_its_paper(name: str) -> None:
    head = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("\nmodel:")[0]
    words = " ".join(line.lstrip("# ") for line in head.splitlines())
    title = re.search(r"Paper: +(?:near to |after |from )?(.*?) \(", words)
    assert title is not None
    docstrings = [ast.get_docstring(ast.parse(source_of(module).read_text(encoding="utf-8"))) or ""
                  for module in named_in(name)]  # fmt: skip
    assert any(title[1].lower() in " ".join(text.lower().split()) for text in docstrings)
