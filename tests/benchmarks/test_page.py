"""More benchmark scripts at tiny sizes, and the page that is made of their results."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks import encode, make_page, memory, scaling, startup
from benchmarks.lib.workload import CaptionBatch
from mmprefix.types import Features
from tiny.captioning_system import quietly

ROOT = Path(__file__).resolve().parents[2]
pytestmark = quietly


@contextmanager
def own_threads() -> Iterator[None]:
    """Give back the number of threads, which a script sets for the whole process; nothing is downloaded."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_threads_of_a_test() -> Iterator[None]:
    with own_threads():
        yield


class Sweeps(NamedTuple):
    """Results of ``benchmarks.scaling`` at tiny sizes, what it printed, and its file."""

    results: dict[str, Any]
    printed: str
    file: Path


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    file, printed = tmp_path_factory.mktemp("results") / "scaling.json", StringIO()
    with own_threads(), redirect_stdout(printed):
        results = scaling.main(["--tiny", "--points", "2", "--repeat", "1", "--json", str(file)])
    return Sweeps(results, printed.getvalue(), file)


def test_scaling(sweeps: Sweeps) -> None:
    results, printed, file = sweeps
    assert json.loads(file.read_text()) == results
    for name, points in results["sweeps"].items():
        assert f"| {name} " in printed
        for point in points:
            assert point["loss_error"] <= 2e-6
            assert 0 < point["gradient_error"] <= 5e-6  # the same, by another computation
            assert point["ratio"] == point["naive"]["cpu_median"] / point["mmprefix"]["cpu_median"]
    assert [point["prefix"] for point in results["sweeps"]["prefix"]] == [10, 20]
    assert [point["layers"] for point in results["sweeps"]["decoder"]] == [2, 4]


def test_the_naive_step_takes_every_caption_once_in_parts() -> None:
    features = Features(torch.zeros(5, 0, 0), torch.zeros(5, 0), torch.arange(5.0)[:, None])
    whole = CaptionBatch(features, [[f"w{n}", "w9"] for n in range(5)])
    for at_once, inputs in ((1, [1] * 5), (5, [2, 2, 1]), (60, [5])):
        parts = scaling.split_batch(whole, at_once)
        assert [len(part.texts) for part in parts] == inputs
        assert [texts for part in parts for texts in part.texts] == whole.texts
        assert torch.equal(torch.cat([part.features.pooled for part in parts]), whole.features.pooled)


def test_parts_compute_what_the_whole_does() -> None:
    """The program ends if they do not."""
    tiny = ["--tiny", "--sweep", "batch", "--points", "2", "--repeat", "1", "--at-once", "10"]
    points = scaling.main(tiny)["sweeps"]["batch"]
    assert [point["batch"] for point in points] == [5, 20]  # the second in two parts
    assert all(0 < point["gradient_error"] <= 5e-6 for point in points)


@pytest.mark.slow
def test_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are forked: to start each anew takes seconds."""
    forking = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: forking)
    file = tmp_path / "memory.json"
    sizes = ["--layers", "2", "--width", "64", "--vocab", "2000", "--prefix-length", "4", "--batch", "10"]
    results = memory.main([*sizes, "--json", str(file)])
    assert json.loads(file.read_text()) == results
    assert len(results["steps"]) == 4
    printed = capsys.readouterr().out
    for name, step in results["steps"].items():
        assert f"| {name} " in printed
        assert step["peak"] >= step["loaded"] > 0
    plain, _, _, wide = results["steps"].values()
    assert wide["loaded"] > plain["loaded"]  # really another vocabulary


def test_work_is_done_in_a_new_process() -> None:
    """One that has not imported what this one has, whose memory would count; the peak is read here, for speed."""
    assert memory.run_in_new_process(eval, "'torch' in __import__('sys').modules") is False
    assert memory.resident("VmHWM") > 0


def test_a_process_that_is_killed_is_an_error() -> None:
    with pytest.raises(BrokenProcessPool):
        memory.run_in_new_process(os._exit, 9)


@pytest.mark.slow
def test_startup(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries' imports, of some seconds each, run in this process, which has done them."""
    programs = startup.commands("model", "file")
    assert len(programs) == 6
    libraries = [name for name in programs if name.endswith(", imported")]
    for name in libraries:
        option, program = programs[name]
        assert option == "-c"
        exec(program, {})
    commands = startup.commands
    monkeypatch.setattr(
        startup, "commands", lambda *paths: {k: v for k, v in commands(*paths).items() if k not in libraries}
    )
    file = tmp_path / "startup.json"
    results = startup.main(["--warm-up", "0", "--repeat", "1", "--json", str(file)])
    assert json.loads(file.read_text()) == results
    printed = capsys.readouterr().out
    for row in results["commands"]:
        assert f"| {row['command']} " in printed
        assert len(row["cpu_s"]) == len(row["wall_s"]) == 1
        assert row["cpu_s"][0] > 0
    assert len(results["commands"]) == 4


def test_startup_needs_a_file_with_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        startup.main(["--model", "anything"])
    assert "give --model and --file, or neither" in capsys.readouterr().err


@pytest.mark.slow
def test_startup_ends_if_a_process_fails() -> None:
    cpu, wall = startup.time_process(["-c", "sum(range(3_000_000))"])
    assert 0 < cpu < 10 * wall
    with pytest.raises(SystemExit, match="no such thing"):
        startup.time_process(["-c", "raise SystemExit('no such thing')"])


@pytest.mark.slow
def test_encode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "encode.json"
    encoder = ["--pictures", "6", "--pixels", "64", "--encoder-layers", "1", "--encoder-width", "64"]
    sizes = ["--layers", "2", "--width", "64", "--vocab", "300", "--batch", "6"]
    results = encode.main([*encoder, *sizes, "--repeat", "1", "--captions", "1", "2", "--json", str(file)])
    assert json.loads(file.read_text()) == json.loads(json.dumps(results))
    half, full = results["filling"]
    assert 0 < half["bytes_so_far"] < full["bytes_so_far"]
    for epoch in results["epochs"]:
        assert len(epoch["with"]) == len(epoch["without"]) == 1
    printed = capsys.readouterr().out
    assert "| 2 " in printed
    assert printed.count("pictures a second") == 2


def test_the_page(sweeps: Sweeps, tmp_path: Path) -> None:
    table, folder, texts = sweeps.printed.strip(), sweeps.file.parent, list[str]()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_page.main(["--results", str(folder), "--out", str(tmp_path / name / "page.md")])
        texts.append((tmp_path / name / "page.md").read_text())
        texts.append((tmp_path / name / "page" / "scaling.svg").read_text())
    assert texts[:2] == texts[2:]
    assert table in texts[0]
    assert texts[0].count("Not measured.") == len(make_page.SECTIONS) - 1
    assert "![How the gain changes](page/scaling.svg)" in texts[0]
    assert f"torch {version('torch')}" in texts[0]


def test_the_page_of_one_sweep(tmp_path: Path) -> None:
    """The sweep over decoders, whose sizes are two numbers each."""
    (tmp_path / "results").mkdir()
    point = {"layers": 2, "width": 64, "mmprefix": {"cpu_median": 1.0}, "naive": {"cpu_median": 2.0}, "ratio": 2.0}
    results = {"sweeps": {"decoder": [point]}, "versions": {"torch": "9.9"}}
    (tmp_path / "results" / "scaling.json").write_text(json.dumps(results))
    make_page.main(["--results", str(tmp_path / "results"), "--out", str(tmp_path / "page.md")])
    assert "| 2 x 64 " in (tmp_path / "page.md").read_text()
    assert "torch 9.9" in (tmp_path / "page.md").read_text()
    assert "<svg" in (tmp_path / "page" / "scaling.svg").read_text()


def test_the_page_in_docs_is_that_of_the_results(tmp_path: Path) -> None:
    make_page.main(["--out", str(tmp_path / "performance.md")])
    assert (tmp_path / "performance.md").read_text() == (ROOT / "docs" / "performance.md").read_text()
