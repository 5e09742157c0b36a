"""Folders of runs: one for each run, none overwritten, refused before the first step where they cannot be written."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mmprefix
from mmprefix.cli.main import main
from mmprefix.cli.training.run_folder import folder_to_fit, newest_run, resolve_checkpoint
from mmprefix.errors import InputError
from tiny.captioning_system import CaptioningSystem, metric_values, quietly
from tiny.shell import Shell

pytestmark = quietly


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture(scope="module")
def runs(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory with the recipe r.yaml and two runs of it, of one epoch."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny.config(("image",))
    config["trainer"] |= {"max_epochs": 1}
    (folder / "r.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["fit", "--config", "r.yaml"]) == 0
        assert main(["fit", "--config", "r.yaml", "--seed_everything", "2"]) == 0
    finally:
        os.chdir(before)
    return folder


def made(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


# --------------------------------------------------------------------------------------------------- names of folders


def test_runs_of_one_name_get_folders_of_their_own(workplace: Path) -> None:
    names = [str(folder_to_fit("a", None, None).path) for _ in range(3)]
    assert names == ["runs/a", "runs/a-2", "runs/a-3"]
    assert str(folder_to_fit("b", None, None).path) == "runs/b"


def test_runs_that_start_at_once_do_not_share(workplace: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: folder_to_fit("a", None, None).path, range(16)))
    assert len(set(folders)) == 16


def test_data_in_the_folder_are_no_run(workplace: Path) -> None:
    made(workplace, "runs/a/samples/one.wav")
    assert str(folder_to_fit("a", None, None).path) == "runs/a"


def test_a_run_that_ends_before_its_first_step_leaves_no_folder(workplace: Path) -> None:
    folder = folder_to_fit("a", None, None)
    made(workplace, "runs/a/logs/version_0/config.yaml")
    folder.release()
    assert not (workplace / "runs" / "a").exists()
    made(workplace, "runs/a/logs/version_0/config.yaml", "runs/a/checkpoints/last.ckpt")
    folder.release()
    assert (workplace / "runs/a/logs/version_0/config.yaml").exists()


def test_last_is_that_of_the_newest_run_of_the_name(workplace: Path) -> None:
    made(workplace, "runs/a/checkpoints/last.ckpt", "runs/a-2/checkpoints/last.ckpt", "runs/ab/checkpoints/last.ckpt")
    for seconds, name in enumerate(("a-2", "a", "ab")):
        for entry in (workplace / "runs" / name / "checkpoints", workplace / "runs" / name):
            os.utime(entry, (seconds + 10**9, seconds + 10**9))
        os.utime(workplace / "runs" / name / "checkpoints" / "last.ckpt", (seconds + 10**9, seconds + 10**9))
    assert str(newest_run("a")) == "runs/a"
    assert str(folder_to_fit("a", None, "last").path) == "runs/a"
    assert str(folder_to_fit("a", None, "runs/a-2/checkpoints/last.ckpt").path) == "runs/a-2"
    assert str(folder_to_fit("a", None, "runs/ab/checkpoints/last.ckpt").path) == "runs/a-3"  # a start from elsewhere


def test_the_newest_of_several_last_checkpoints_is_taken(tmp_path: Path) -> None:
    made(tmp_path, "checkpoints/last.ckpt", "hpc_ckpt_1.ckpt")
    os.utime(tmp_path / "checkpoints" / "last.ckpt", (1, 1))
    places = [tmp_path / "checkpoints", tmp_path]
    assert resolve_checkpoint("last", places).name == "hpc_ckpt_1.ckpt"
    with pytest.raises(InputError, match=r"--ckpt_path best: there is no such checkpoint in .*; leave it out"):
        resolve_checkpoint("best", places)


def test_a_job_that_a_scheduler_starts_again_goes_on_in_its_folder(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    first = folder_to_fit("a", None, None)
    assert folder_to_fit("a", None, None).path.name == "a-2"  # the same job trains twice
    shutil.rmtree("runs/a-2")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = folder_to_fit("a", None, None)
    assert again.path == first.path
    assert again.resumed_job
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    assert folder_to_fit("a", None, None).path.name == "a-2"


def test_processes_of_other_launchers_share_one_folder(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert {str(folder_to_fit("a", None, None).path) for _ in range(2)} == {"runs/a"}
    made(workplace, "runs/a/checkpoints/last.ckpt")
    with pytest.raises(InputError, match="runs/a: holds a run; --ckpt_path last goes on with it"):
        folder_to_fit("a", None, None)


def test_a_folder_that_the_recipe_names_is_not_written_over(tmp_path: Path) -> None:
    made(tmp_path, "checkpoints/last.ckpt")
    with pytest.raises(InputError, match="holds a run; --ckpt_path last goes on with it, --overwrite starts anew"):
        folder_to_fit("a", str(tmp_path), None)
    assert folder_to_fit("a", str(tmp_path), "last").path == tmp_path
    folder_to_fit("a", str(tmp_path), None, overwrite=True).clear()
    assert not list((tmp_path / "checkpoints").iterdir())


# ------------------------------------------------------------------------------------------------------- real runs


def test_two_runs_of_a_recipe_do_not_mix(runs: Path) -> None:
    for name in ("r", "r-2"):
        root = runs / "runs" / name
        assert sorted(file.name for file in (root / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
        assert len(list((root / "logs").iterdir())) == 1
        assert [len(metric_values(root, f"train/{figure}")) for figure in ("loss", "lr", "grad_norm")] == [2, 2, 2]
        hparams = yaml.safe_load(next(root.glob("logs/*/hparams.yaml")).read_text())
        assert hparams["model"]["optimizer"]["init_args"]["lr"] == 0.01
        assert yaml.safe_load(next(root.glob("logs/*/config.yaml")).read_text()) == hparams
    assert yaml.safe_load(next(runs.glob("runs/r-2/logs/*/hparams.yaml")).read_text())["seed_everything"] == 2
    first, second = (torch.load(runs / f"runs/{n}/checkpoints/last.ckpt", weights_only=True) for n in ("r", "r-2"))
    assert any(not torch.equal(first["state_dict"][key], second["state_dict"][key]) for key in first["state_dict"])
    mmprefix.load(runs / "runs/r-2/model", device="cpu")


def test_the_options_beside_the_logs_are_a_recipe(runs: Path) -> None:
    file = next(runs.glob("runs/r/logs/*/config.yaml"))
    assert main(["fit", "--config", str(file), "--dry_run"]) == 0


def test_predict_takes_a_checkpoint_or_a_model_and_writes_over_nothing(
    runs: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, tiny: CaptioningSystem
) -> None:
    monkeypatch.chdir(runs)
    refusal = shell.refuses("predict", "--config", "r.yaml")
    assert refusal.startswith("predict: give --ckpt_path last (or a file), or --model DIR")
    data = ("--data.predict", tiny.folder / "val.jsonl")
    rows: dict[str, Any] = {}
    for out, source in (
        ("a", ("--model", "runs/r-2/model", *data)),
        ("b", ("--config", "r.yaml", "--ckpt_path", "last")),
    ):
        words = (*source, *data) if out == "b" else source
        code, _, err = shell("predict", *words, "--out", f"{out}.jsonl")
        assert code == 0, err
        rows[out] = [json.loads(line) for line in Path(f"{out}.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows["a"]] == [row["id"] for row in rows["b"]]
    assert [row["prediction"] for row in rows["a"]] == [row["prediction"] for row in rows["b"]]
    assert "--out a.jsonl: exists; --overwrite replaces it" in shell.refuses(
        "predict", "--model", "runs/r/model", *data, "--out", "a.jsonl"
    )
    assert "runs/none: no such directory" in shell.refuses("predict", "--model", "runs/none", *data)
    assert not list(Path().glob("*.partial"))


def kept_files(runs: Path) -> dict[str, int]:
    """Folders of runs, and when their checkpoints and models were written."""
    files = [*runs.glob("runs/*/checkpoints/*"), *runs.glob("runs/*/model/*")]
    return dict.fromkeys(map(str, runs.glob("runs/*")), 0) | {str(file): file.stat().st_mtime_ns for file in files}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--save_to", "r.yaml/model"), "save_to r.yaml/model: r.yaml is a file; give a folder"),
        (("--save_to", "/proc/none/model"), "save_to /proc/none/model: cannot be written"),
        (("--trainer.default_root_dir", "r.yaml/run"), "trainer.default_root_dir r.yaml/run: r.yaml is a file"),
        (("--trainer.default_root_dir", "/proc/none"), "trainer.default_root_dir /proc/none: cannot be written"),
        (("--save_to", "runs/r/model"), "save_to runs/r/model: holds a model; --overwrite replaces it"),
        (("--trainer.default_root_dir", "runs/r"), "runs/r: holds a run; --ckpt_path last goes on with it"),
        (("--name", "x", "--ckpt_path", "last"), "--ckpt_path last: there is no run runs/x yet; leave it out"),
        (("--name", "../x"), "--name '../x': give the name of a folder below runs"),
        (("--ckpt_path", "none.ckpt"), "none.ckpt: no such checkpoint"),
        (("--ckpt_path", "empty.ckpt"), "empty.ckpt: is no checkpoint that can be read (it is empty or cut off)"),
        (("--ckpt_path", "foreign.ckpt"), "foreign.ckpt: was not written by mmprefix"),
        (("--ckpt_path", "cut.ckpt"), "cut.ckpt: is no checkpoint that can be read ("),
        (("--ckpt_path", "last", "--trainer.max_epochs", "0"), "trainer.max_epochs 0: the checkpoint "),
        (("--ckpt_path", "last", "--trainer.max_steps", "1"), "trainer.max_steps 1: the checkpoint "),
        (("--seed_everything", "1180591620717411303424"), "seed_everything 1180591620717411303424: give a number"),
        (("--data.init_args.seed", "-1"), "data.seed -1: give a number"),
        (("--patience", "0"), "patience 0: give a number of validations"),
        (("--checkpoint_every_minutes", "0"), "checkpoint_every_minutes 0.0: give a number above 0"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(
    words: tuple[str, ...], message: str, runs: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    (runs / "empty.ckpt").write_bytes(b"")
    (runs / "cut.ckpt").write_bytes((runs / "runs/r/checkpoints/last.ckpt").read_bytes()[:20000])
    torch.save({"state_dict": {}}, runs / "foreign.ckpt")
    before = kept_files(runs)
    assert message in shell.refuses("fit", "--config", "r.yaml", *words)
    assert kept_files(runs) == before


def test_a_key_that_stands_twice_in_a_recipe_is_refused(
    runs: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    (runs / "twice.yaml").write_text((runs / "r.yaml").read_text() + "seed_everything: 3\n")
    assert "seed_everything stands there twice, in lines 1 and" in shell.refuses("fit", "--config", "twice.yaml")
