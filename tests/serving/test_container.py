"""Form of the Dockerfile and the compose file: what they copy exists, versions are named, nothing runs as root."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

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


def test_the_pins_fit_what_the_image_installs() -> None:
    """Every package of the pip lines has a pin, which the declared bounds and the image's Python allow."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    lines = [words for name, words in instructions() if name == "RUN" and "pip install" in words]
    assert len(lines) == 1
    assert [words.count("-c constraints.txt") for words in lines] == [2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    python = re.findall(r"FROM python:([\d.]+)", text)[0]
    assert Version(python) in SpecifierSet(project["requires-python"])
    pins = {canonicalize_name(name): version for name, version in pinned()}
    extras = re.findall(r'"\.\[([\w,]+)\]"', text)[0].split(",")
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    requirements = [Requirement(line) for line in wanted]
    assert len(requirements) > 20
    unfit = [str(each) for each in requirements if pins.get(canonicalize_name(each.name), "0") not in each.specifier]
    assert unfit == []
    first = lines[0][: lines[0].index('&& /opt/mmprefix/bin/pip install --no-cache-dir -c constraints.txt ".')]
    assert {"torch", "torchaudio", "torchvision"} <= set(shlex.split(first))  # from the index of CPU wheels
    assert "--index-url https://download.pytorch.org/whl/cpu" in first


def pinned() -> list[tuple[str, str]]:
    """Names and versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [(name, version) for name, _, version in (line.partition("==") for line in lines) if version]


def test_what_the_entry_point_names_is_a_script_of_the_package() -> None:
    words = json.loads(dict(instructions())["ENTRYPOINT"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"][words[0]].split(":")
    assert callable(getattr(importlib.import_module(module), function))
    copied = dict(instructions())["ENV"]
    assert "PATH=/opt/mmprefix/bin:" in copied  # where pip has put the script


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
