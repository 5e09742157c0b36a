"""Classes of other modules are imported only if the user allows the module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmprefix.cli.main import main
from mmprefix.errors import InputError
from mmprefix.parts import Part, resolve_class
from mmprefix.trust.modules import allow_modules
from tiny.captioning_system import CaptioningSystem

MAPPER = '''
from pathlib import Path

from mmprefix.mappers.mlp import MLP

Path(__file__).with_suffix(".ran").touch()


class Mine(MLP):
    """A mapper of one's own."""
'''


@pytest.fixture
def neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Module ``my_mapper`` in a folder of its own; it leaves a file where it is imported."""
    file = tmp_path / "beside" / "my_mapper.py"
    file.parent.mkdir()
    file.write_text(MAPPER, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield file
    sys.modules.pop("my_mapper", None)


def ran(module: Path) -> bool:
    return module.with_suffix(".ran").exists()


def recipe_with(system: CaptioningSystem, file: Path, option: str, class_path: str) -> Path:
    """The tiny system's recipe in ``file``, with ``class_path`` at the dotted ``option``."""
    recipe = system.config()
    recipe["trainer"]["default_root_dir"] = str(file.parent)
    node: dict[str, Any] = recipe
    *parents, last = option.split(".")
    for name in parents:
        node = node[name]
    node[last] = {"class_path": class_path}
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return file


@pytest.mark.parametrize("path", ["this.Zen", "os.system", "mmprefix.__main__.main", "mmprefix", "payload.Run"])
def test_no_other_module_is_imported(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, path.rpartition(".")[0], raising=path.startswith("os"))
    before = set(sys.modules)
    with pytest.raises(InputError, match=f"recipe: class_path '{path}'"):
        resolve_class(path, Part)
    assert set(sys.modules) == before


def test_an_allowed_module_is_imported(neighbour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(neighbour.parent))
    with pytest.raises(InputError, match=r"--allow my_mapper$"):
        resolve_class("my_mapper.Mine", Part)
    assert not ran(neighbour)
    with allow_modules(["my_mapper"]):
        assert resolve_class("my_mapper.Mine", Part).__name__ == "Mine"
    with pytest.raises(InputError, match=r"--allow my_mapper$"):
        resolve_class("my_mapper.Mine", Part)
    monkeypatch.setenv("MMPREFIX_ALLOW", "another, my_mapper")
    assert resolve_class("my_mapper.Mine", Part).__name__ == "Mine"


@pytest.mark.parametrize(
    "option",
    ["model.branches.image.mapper", "model.branches.image.encoder", "model.decoder", "model.optimizer", "model.prefix"],
)
@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_recipe_runs_nothing_foreign(
    option: str,
    flags: list[str],
    tiny: CaptioningSystem,
    neighbour: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(neighbour.parent))
    for path in ("my_mapper.Mine", "os.system", "subprocess.run", "mmprefix.__main__.main"):
        recipe = recipe_with(tiny, tmp_path / "recipe.yaml", option, path)
        assert main(["fit", "--config", str(recipe), *flags]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert "model." in error, error
        reasons = (f"class_path {path!r}: not imported", f"class_path {path}: no such class")
        assert any(reason in error for reason in reasons), error
    assert not ran(neighbour)


def test_a_recipe_uses_the_file_beside_it(tiny: CaptioningSystem, neighbour: Path) -> None:
    recipe = recipe_with(tiny, neighbour.parent / "recipe.yaml", "model.branches.image.mapper", "my_mapper.Mine")
    command = ["fit", "--config", str(recipe), "--dry-run"]
    assert main(command) == 2
    assert main([*command, "--allow", "my_mapper"]) == 0
    assert ran(neighbour)
    assert main(command) == 2  # what was allowed once is not allowed for ever
    assert main([*command, "--allow"]) == 2
