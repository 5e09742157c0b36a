"""Pages of the documentation in tests: their fenced blocks, and running them as a shell and Python do."""

from __future__ import annotations

import glob
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from mmprefix.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"(?:^<!-- ([\w]+)(?:: (.*?))? -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Fenced block of a page; ``mark`` and ``name`` are those of the comment above it: ``<!-- MARK: NAME -->``."""

    page: str
    mark: str
    name: str
    language: str
    text: str


def pages() -> list[str]:
    """README.md, CONTRIBUTING.md and the pages of docs, relative to the repository."""
    docs = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *docs]


def blocks(page: str) -> list[Block]:
    """Fenced blocks of ``page``, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(page, m[1] or "", m[2] or "", m[3], m[4]) for m in FENCE.finditer(text)]


def block(page: str, name: str) -> str:
    """Text of the block ``<!-- run: NAME -->`` of ``page``, or of the one with the mark NAME alone."""
    texts = [one.text for one in blocks(page) if name in (one.name if one.mark == "run" else "", one.mark)]
    assert len(texts) == 1, f"{page} has {len(texts)} blocks {name!r}"
    return texts[0]


def statements(text: str) -> Iterator[str]:
    r"""Commands of a block, each with its here-document and the lines that a ``\`` joins to it."""
    lines = iter(text.splitlines())
    for line in lines:
        whole = [line]
        while whole[-1].endswith("\\"):
            whole.append(next(lines))
        if end := re.search(r"<<'(\w+)'", line):
            for more in lines:
                whole.append(more)
                if more == end[1]:
                    break
        yield "\n".join(whole)


def words_of(statement: str) -> list[str]:
    """Words of a command, without comments, and without what it is piped or written to."""
    words = shlex.split(statement.replace("\\\n", " "), comments=True)
    return list(takewhile(lambda word: word not in ("|", ">", ">>", "&", "&&"), words))


def run(text: str, *, fit: Sequence[str] = ()) -> None:
    """Run a block as a shell does; ``mmprefix`` runs in this process, which has done its imports.

    ``fit``: further words of ``mmprefix fit``, so that a training is short.
    """
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for statement in statements(text):
        words = words_of(statement)
        if words[:1] == ["mmprefix"]:
            words = [path for word in words[1:] for path in sorted(glob.glob(word)) or [word]]
            assert exit_code([*words, *(fit if words[0] == "fit" else ())]) == 0, statement
        elif words:
            subprocess.run(["bash", "-euc", statement], check=True, env={**os.environ, **paths})


def exit_code(words: list[str]) -> int:
    """Exit code of ``mmprefix WORDS``; ``--help`` and ``--version`` end the program themselves."""
    try:
        return main(words)
    except SystemExit as stop:
        return int(stop.code or 0)


def execute(page: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run every block of Python of ``page`` that is marked, one after the other; returns their names."""
    names = {} if names is None else names
    for one in blocks(page):
        if one.mark == "run" and one.language == "python":
            exec(compile(one.text, page, "exec"), names)
    return names
