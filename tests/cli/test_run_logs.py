"""Logs of a run on a full disk: one line with the file, and the earlier checkpoint is still there."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tiny.captioning_system import CaptioningSystem, error_message, quietly, run
from tiny.disk import full_disk
from tiny.shell import Shell

pytestmark = quietly
KB = 1024


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.mark.parametrize(
    ("room", "file"), [(2 * KB, "config.yaml"), (5 * KB, "logs/version_0"), (20 * KB, "model: could")]
)
def test_a_full_disk_is_one_line_with_the_file(
    room: int, file: str, tiny: CaptioningSystem, tmp_path: Path, shell: Shell
) -> None:
    """Sizes of the files: config 4 KB, events 7 KB, model 45 KB."""
    config = tiny.config()
    config["trainer"] |= {"default_root_dir": str(tmp_path / "run"), "enable_checkpointing": False}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
    with full_disk(room):
        code, _, err = shell("fit", "--config", tmp_path / "recipe.yaml")
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("mmprefix: ")]
    assert line.startswith(f"mmprefix: {tmp_path / 'run'}")
    assert "could not be written (" in line
    assert "File too large" in line
    assert file in line
    assert "Traceback" not in err


def test_a_full_disk_leaves_the_checkpoint_to_go_on_from(
    tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny.recipe(tiny.config(["image"]), tmp_path)
    assert run("fit", recipe, trainer__max_epochs=1) == 0
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    with full_disk(30 * KB):
        message = error_message("fit", recipe, capfd, ckpt_path="last")
    assert message.startswith(str(tmp_path / "checkpoints"))
    assert last.read_bytes() == before
    assert sorted(file.name for file in last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert run("fit", recipe, ckpt_path="last") == 0
