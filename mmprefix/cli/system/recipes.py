"""``mmprefix recipes [NAME]``: the recipes of the package, a line each; of one its header, or a copy to edit."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from mmprefix.atomic import write_atomically
from mmprefix.cli.system.shipped import ShippedRecipe, recipe_names, shipped_recipe
from mmprefix.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="show the header of this recipe, and where it lies")
    parser.add_argument("--out", metavar="FILE", help="copy the recipe NAME to FILE, to edit it")
    parser.add_argument("--overwrite", action="store_true", help="write over FILE where it is there")
    parser.add_argument("--json", action="store_true", help="print JSON: needs, state and the header's fields")


def run(args: argparse.Namespace) -> int:
    """Print or copy; returns the exit code 0. Raises InputError for an unknown name and for a file that is there."""
    if args.out is not None:
        if args.name is None:
            raise InputError("--out copies one recipe; name it: mmprefix recipes NAME --out FILE")
        return _copy(shipped_recipe(args.name), Path(args.out), args.overwrite)
    if args.name is not None:
        recipe = shipped_recipe(args.name)
        text = json.dumps(recipe.as_dict(), indent=2, ensure_ascii=False) if args.json else _page(recipe)
    else:
        recipes = [shipped_recipe(name) for name in recipe_names()]
        rows = [recipe.as_dict() for recipe in recipes]
        text = json.dumps(rows, indent=2, ensure_ascii=False) if args.json else _list(recipes)
    sys.stdout.write(text + "\n")
    return 0


def _copy(recipe: ShippedRecipe, out: Path, overwrite: bool) -> int:
    if out.is_dir():
        out = out / recipe.path.name
    if out.exists() and not overwrite:
        raise InputError(f"--out {out}: the file is there; --overwrite writes over it")
    text = recipe.path.read_text(encoding="utf-8")
    write_atomically(out, lambda file: file.write_text(text, encoding="utf-8"))
    sys.stdout.write(f"{out}\n")
    return 0


def _list(recipes: list[ShippedRecipe]) -> str:
    """A line a recipe, as wide as the terminal where there is one: name, needs, title."""
    width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else None
    longest = max(len(recipe.name) for recipe in recipes)
    lines = []
    for recipe in recipes:
        kinds = dict.fromkeys(need.kind for need in recipe.needs)
        line = f"{recipe.name:{longest}}  {', '.join(kinds) or 'nothing':20}  {recipe.title}"
        lines.append(line if width is None or len(line) <= width else f"{line[: width - 1]}…")
    head = f"{'recipe':{longest}}  {'needs':20}  what it is"
    foot = "embedded: in the package; models: in the folder MMPREFIX_MODELS; hub: downloaded once; file: made first"
    more = "prefix methods, over one base: --config methods/base --config methods/NAME (docs/methods.md)"
    return "\n".join([head, *lines, "", foot, "mmprefix recipes NAME shows one, --out FILE copies it", more])


def _page(recipe: ShippedRecipe) -> str:
    """Path, header and needs of a recipe."""
    marks = {True: "present", False: "missing", None: "from a hub"}
    needs = [f"  {need.kind:9} {need.name}: {marks[need.present]}" for need in recipe.needs]
    lines = [str(recipe.path), "", recipe.header, "", "needs:", *(needs or ["  nothing"])]
    return "\n".join([*lines, f"state: {recipe.state}"])
