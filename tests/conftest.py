"""One thread per process, the marker ``numeric``, and the systems that many tests train.

Tests run in as many processes as there are cores; tiny models gain nothing from threads.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tiny.captioning_system import CaptioningSystem
    from tiny.speech_system import SpeechSystem

gc.disable()  # until all tests are collected

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; programs that tests start inherit it

os.environ.setdefault("MMPREFIX_ALLOW", "tests,tiny,trace_files,benchmarks")  # recipes of tests name classes of these

if "MMPREFIX_CACHE" not in os.environ:  # places of frozen parts: not in the user's cache
    _cache = tempfile.TemporaryDirectory(prefix="mmprefix-cache.")
    os.environ["MMPREFIX_CACHE"] = _cache.name

if "MMPREFIX_TEST_SYSTEMS" not in os.environ:  # processes that run tests share what tiny/copies.py keeps
    _systems = tempfile.TemporaryDirectory(prefix="mmprefix-systems.")
    os.environ["MMPREFIX_TEST_SYSTEMS"] = _systems.name

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a background job; tests send it, and programs inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent
NUMERIC = (  # texts, scores and gradients of models: what a processor's instruction set can change
    "decoders",
    "fast",
    "generation",
    "inference",
    "kv_cache",
    "mappers",
    "parity",
    "slu",
    "cli/test_transcribe.py",
    "cli/test_understand.py",
    "system/test_saved.py",
    "test_model.py",
    "test_transcriber.py",
    "training/test_report.py",
    "training/test_task.py",
)


def in_numeric(file: Path) -> bool:
    """True for a file of the list above."""
    return any(file.relative_to(TESTS).is_relative_to(place) for place in NUMERIC)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not read files without numeric tests where no others are asked for: to read all takes half a minute."""
    words = str(config.getoption("markexpr") or "").split()
    if words[:1] != ["numeric"] or "or" in words or collection_path.suffix != ".py":
        return None
    numeric = in_numeric(collection_path) or "mark.numeric" in collection_path.read_text(encoding="utf-8")
    return None if numeric else True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Skip what PyTorch itself cannot: attention in bfloat16 by kernels without AVX-512 on a processor with AMX."""
    try:
        yield
    except RuntimeError as error:
        if "pack_vnni2 is only supported" not in str(error):
            raise
        pytest.skip("PyTorch's attention in bfloat16 wants AVX-512's kernels on this processor")


def pytest_collection_finish() -> None:
    """Leave what the imports made out of the garbage collector's rounds, half a second each; forks copy less, too."""
    gc.freeze()
    gc.enable()
    if sys.gettrace() is not None:  # coverage is measured
        from tiny.untraced import leave_out

        leave_out()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that CI runs again under other instruction sets, and leave slow ones out of coverage.

    Tracing makes a test two to three times as long; what slow ones run as a whole, the others cover part by part.
    """
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker("no_cover")
        if in_numeric(item.path):
            item.add_marker(pytest.mark.numeric)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> CaptioningSystem:
    """Small captioning system in a new folder."""
    from tiny.captioning_system import build  # it imports torch, which reads OMP_NUM_THREADS

    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> SpeechSystem:
    """Small speech system in a new folder, its Whisper untrained."""
    from tiny.speech_system import build

    return build(tmp_path_factory.mktemp("spoken"))


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Pytest's own, with the library's log in it: the shell, which some tests run, keeps that to itself."""
    monkeypatch.setattr(logging.getLogger("mmprefix"), "propagate", True)
    return caplog


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], str]:
    """Names ``models:NAME`` of pretrained models; a test that asks for one skips where MMPREFIX_MODELS lacks it."""
    folder = os.environ.get("MMPREFIX_MODELS", "")

    def named(name: str) -> str:
        if not folder or not (Path(folder) / name).is_dir():
            pytest.skip(f"needs the pretrained model {name} in the folder that MMPREFIX_MODELS names")
        return f"models:{name}"

    return named
