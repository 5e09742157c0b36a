"""Atomic writes on a full disk (the system refuses the write): a message of one line, earlier files unchanged."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmprefix import atomic
from mmprefix.atomic import write_atomically, write_directory_atomically
from mmprefix.errors import InputError
from mmprefix.inference.loading import load
from mmprefix.training.checkpoint_io import AtomicCheckpointIO
from tiny.captioning_system import CaptioningSystem, checkpoint_tensors, error_message, quietly, run
from tiny.disk import full_disk

pytestmark = quietly
KB = 1024


@pytest.fixture(scope="module")
def fitted(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a training of one step: checkpoints/last.ckpt and model/."""
    root = tmp_path_factory.mktemp("fit")
    recipe = tiny.recipe(tiny.config(["image"]), root)
    assert run("fit", recipe, save_to=root / "model", trainer__max_steps=1) == 0
    return root


@pytest.mark.parametrize("room", [0, 10 * KB])
def test_a_full_disk_leaves_the_old_checkpoint(fitted: Path, tmp_path: Path, room: int) -> None:
    file = Path(shutil.copy(fitted / "checkpoints" / "last.ckpt", tmp_path / "last.ckpt"))
    content = torch.load(file, weights_only=True)
    before = file.read_bytes()
    with full_disk(room), pytest.raises(InputError, match=r"last.ckpt: could not be written .*is untouched") as caught:
        AtomicCheckpointIO().save_checkpoint({**content, "state_dict": {"more": torch.ones(9000)}}, file)
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    AtomicCheckpointIO().save_checkpoint({**content, "state_dict": {"more": torch.ones(9000)}}, file)
    assert checkpoint_tensors(file)["more"].sum() == 9000


@pytest.mark.parametrize("room", [0, 10 * KB])
def test_a_full_disk_leaves_the_old_model(fitted: Path, tmp_path: Path, room: int) -> None:
    model = Path(shutil.copytree(fitted / "model", tmp_path / "model"))
    predictor = load(model, device="cpu")
    with torch.no_grad():
        for tensor in predictor.model.trained.values():
            tensor.add_(1)
    with full_disk(room), pytest.raises(InputError, match=r"model: could not be written .*is untouched") as caught:
        predictor.save(model)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    for file in (fitted / "model").iterdir():
        assert (model / file.name).read_bytes() == file.read_bytes()
    load(model, device="cpu")


def test_a_full_disk_stops_a_training_in_one_line(tiny: CaptioningSystem, tmp_path: Path, capfd: Any) -> None:
    config = tiny.config(["image"])
    config["trainer"]["logger"] = False
    recipe = tiny.recipe(config, tmp_path)
    with full_disk(10 * KB):
        message = error_message("fit", recipe, capfd, trainer__max_epochs=1)
    assert message.startswith(str(tmp_path / "checkpoints"))
    assert "could not be written" in message
    assert not list((tmp_path / "checkpoints").iterdir())


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("old")

    def broken(fresh: Path) -> None:
        fresh.write_text("new, but")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, broken)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert file.read_text() == "old"


KILLED = """
import os, signal, sys
from pathlib import Path
from mmprefix.atomic import write_atomically, write_directory_atomically

count = 0
def kill(event, arguments):
    global count
    if event in ("open", "os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir", "os.scandir", "ctypes.dlopen"):
        count += 1
        if count == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

def fill(fresh):
    (fresh / "a").write_text("new")
    (fresh / "b").write_text("new")

sys.addaudithook(kill)
target = Path(sys.argv[1])
if target.name == "folder":
    write_directory_atomically(target, fill)
else:
    write_atomically(target, lambda fresh: fresh.write_text("new"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="two directories change places in one step on Linux only")
@pytest.mark.parametrize("name", ["folder", "file"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new(name: str, tmp_path: Path) -> None:
    """At every moment one of both is in its place, whole; the next writer removes what the killed one left."""
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    code, step = -9, 0
    while code:
        step += 1
        target = tmp_path / str(step) / name
        target.parent.mkdir()
        files = [target / "a", target / "b"] if name == "folder" else [target]
        if name == "folder":
            target.mkdir()
        for file in files:
            file.write_text("old")
        code = subprocess.run([sys.executable, script, target, str(step)], check=False).returncode
        assert code in (0, -9)
        assert {file.read_text() for file in files} in ({"old"}, {"new"})
        if name == "folder":
            write_directory_atomically(target, lambda fresh: (fresh / "a").write_text("again"))
        else:
            write_atomically(target, lambda fresh: fresh.write_text("again"))
        assert [path.name for path in target.parent.iterdir()] == [name]
    assert step > 4  # the last step is one that the write does not reach


def test_a_living_writer_keeps_its_file(tmp_path: Path) -> None:
    host, random = socket.gethostname()[:40], "0" * 16
    own = tmp_path / f".out.{host}.{os.getppid()}.{random}.tmp"
    dead = tmp_path / f".out.{host}.{2**22 + 1}.{random}.tmp"  # above the highest process number
    foreign = tmp_path / ".out.tmp"
    for file in (own, dead, foreign):
        file.write_text("x")
    write_atomically(tmp_path / "out", lambda fresh: fresh.write_text("new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([own.name, foreign.name, "out"])


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_holds(mask: int, tmp_path: Path) -> None:
    def private(fresh: Path) -> None:
        fresh.write_text("x")
        fresh.chmod(0o600)

    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", private)
        write_directory_atomically(tmp_path / "folder", lambda fresh: (fresh / "a").write_text("x"))
        write_directory_atomically(tmp_path / "folder", lambda fresh: (fresh / "a").write_text("y"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask
    assert stat.S_IMODE((tmp_path / "folder" / "a").stat().st_mode) == 0o666 & ~mask


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that others write to, a guessed name could be a link to a file of the user's own."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: "guessed")
    link = tmp_path / f".out.{socket.gethostname()[:40]}.{os.getpid()}.guessed.tmp"
    link.symlink_to(victim)
    with pytest.raises(InputError, match="could not be written"):
        write_atomically(tmp_path / "out", lambda fresh: fresh.write_text("x"))
    assert victim.read_text() == "precious"


def test_names_of_any_length(tmp_path: Path) -> None:
    for name in ("n" * 255, "é" * 127):
        write_atomically(tmp_path / name, lambda fresh: fresh.write_text("x"))
        assert (tmp_path / name).read_text() == "x"


def test_two_steps_where_the_system_has_no_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    for text in ("old", "new"):
        write_directory_atomically(tmp_path / "folder", lambda fresh, text=text: (fresh / "a").write_text(text))
    assert (tmp_path / "folder" / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
