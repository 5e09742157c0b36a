"""One thread per process, and the marker ``numeric``.

Tests run in as many processes as there are cores; tiny models gain nothing from threads.
"""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; programs that tests start inherit it

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that CI runs again under other instruction sets."""
    for item in items:
        file = item.path.relative_to(TESTS)
        if any(file.is_relative_to(place) for place in NUMERIC):
            item.add_marker(pytest.mark.numeric)
