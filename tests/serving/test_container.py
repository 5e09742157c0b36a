"""Form of the Dockerfile and the compose file: what they copy exists, versions are named, nothing runs as root."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmprefix.cli.serving.serve import add_arguments
from mmprefix.version import __version__

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "demos" / "serve"
BUILD = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV"}
START = {"EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, continued lines joined."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line.strip()]


def compose() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))


def test_every_instruction_is_one() -> None:
    assert {name for name, _ in instructions()} == BUILD | START
    assert instructions()[0][0] == "FROM"


def test_what_is_copied_exists() -> None:
    copies = [shlex.split(words) for name, words in instructions() if name == "COPY" and "--from" not in words]
    sources = [source for words in copies for source in words[:-1]]
    assert len(sources) > 5
    assert [source for source in sources if not (ROOT / source).exists()] == []
    packaged = {"mmprefix", "encoders", "mappers", "recipes", "pyproject.toml", "README.md", "LICENSE"}
    assert packaged <= set(sources)  # the build of the package reads these


def test_versions_are_named() -> None:
    images = [words.split(" AS ")[0] for name, words in instructions() if name == "FROM"]
    assert len(images) == 2
    for image in [*images, compose()["services"]["mmprefix"]["image"]]:
        assert re.search(r":\d+\.\d+", image), image
        assert "latest" not in image
    assert compose()["services"]["mmprefix"]["image"].endswith(f":{__version__}")
    extras = re.findall(r'"\.\[([\w,]+)\]"', (FOLDER / "Dockerfile").read_text())[0].split(",")
    declared = (ROOT / "pyproject.toml").read_text()
    assert [extra for extra in extras if not re.search(rf"^{extra} = \[", declared, re.MULTILINE)] == []


def test_it_runs_without_rights_and_is_asked_whether_it_is_ready() -> None:
    last = dict(instructions())
    assert last["USER"] == "mmprefix"
    assert "/readyz" in last["HEALTHCHECK"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    service = compose()["services"]["mmprefix"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(str(port).startswith("127.0.0.1:") for port in service["ports"])


def test_the_command_is_one_that_the_verb_takes() -> None:
    words = json.loads(dict(instructions())["ENTRYPOINT"])
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert words[:2] == ["mmprefix", "serve"]
    text = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
    command = yaml.safe_load(re.findall(r"# (command: .*)", text)[0])["command"]
    parsed = parser.parse_args([*words[2:], *command])
    assert (parsed.host, parsed.port, parsed.models) == ("0.0.0.0", 8000, ["photos=/models/photos"])


@pytest.mark.parametrize("path", ["context", "dockerfile"])
def test_the_compose_file_builds_this_checkout(path: str) -> None:
    build = compose()["services"]["mmprefix"]["build"]
    context = (FOLDER / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file() if path == "dockerfile" else context.is_dir()
