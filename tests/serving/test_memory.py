"""Memory of a service, in a process of its own: what other tests leave in this one (log handlers, caches) grows too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURED = Path(__file__).with_name("memory_of_requests.py")


@pytest.mark.slow
def test_requests_leave_no_objects_behind() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "-p",
        "no:logging",
        "-p",
        "no:cacheprovider",
        str(MEASURED),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, cwd=Path(__file__).parents[2], env=environment
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "1 passed" in done.stdout or "[100%]" in done.stdout
