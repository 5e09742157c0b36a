"""docs/architecture.md: every file that it names exists, and the trace counts the files that it states."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_every_file_that_is_named_exists() -> None:
    names = re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", PAGE)
    paths = [(ROOT / name, ROOT / "mmprefix" / name) for name in names]
    assert [str(own) for own, packaged in paths if not own.exists() and not packaged.exists()] == []


@pytest.mark.slow
def test_a_caption_and_a_training_step_pass_through_few_files() -> None:
    command = [sys.executable, "docs/trace_files.py", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    files = json.loads(result.stdout[result.stdout.index("{") :])
    counts = [len(files["caption"]), len(files["training step"])]
    assert "The trace counts {} files for a caption and {} for a training step".format(*counts) in PAGE
