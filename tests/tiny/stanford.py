"""Stanford's tokeniser, run as the COCO evaluation runs it; needs Java and pycocoevalcap."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

DROPPED = ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
"""Tokens that the COCO evaluation leaves out."""


def stanford(texts: list[str]) -> list[str]:
    """Tokens of each text by Stanford's PTBTokenizer 3.4.1, run and filtered as in the COCO evaluation.

    A line that says "zz" stands between two texts: the program decides about a line's last period by the next word.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    java = shutil.which("java")
    if spec is None or not spec.submodule_search_locations or java is None:
        pytest.skip("needs pycocoevalcap and Java")
    archive = Path(next(iter(spec.submodule_search_locations)), "tokenizer", "stanford-corenlp-3.4.1.jar")
    command = [java, "-Dfile.encoding=UTF-8", "-cp", str(archive), "edu.stanford.nlp.process.PTBTokenizer"]
    lines = "\nzz\n".join(text.replace("\n", " ") for text in texts)
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"], input=lines.encode(), capture_output=True, check=True
    )
    rows = done.stdout.decode().split("\n")[: 2 * len(texts) : 2]
    return [" ".join(word for word in row.rstrip().split(" ") if word not in DROPPED) for row in rows]
