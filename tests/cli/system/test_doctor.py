"""``mmprefix doctor``: what it says of this machine, of broken installations, and that it never raises."""

from __future__ import annotations

import json
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement as Reference
from packaging.specifiers import SpecifierSet

from mmprefix.cli.system import doctor, machine, requirements
from mmprefix.cli.system.doctor import BROKEN, FEATURES, MISSING, OK, Finding
from mmprefix.cli.system.requirements import CORE, requirement, within
from tiny.shell import Shell

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def findings(**options: bool) -> dict[tuple[str, str], Finding]:
    return {(one.section, one.name): one for one in doctor.examine(**options)}


def test_versions_are_those_of_the_metadata(shell: Shell) -> None:
    code, out, err = shell("doctor", "--json")
    report = json.loads(out)
    assert err == ""
    by_name = {(one["section"], one["name"]): one for one in report["findings"]}
    for line in PROJECT["dependencies"]:
        name = Reference(line).name
        assert metadata.version(name) in by_name["version", name]["text"]
    assert report["ok"] == (code == 0)


def test_every_extra_has_a_line_and_a_feature() -> None:
    by_name = findings()
    for extra, lines in PROJECT["optional-dependencies"].items():
        assert extra in FEATURES
        if extra == "dev":
            continue
        wanted = [Reference(line) for line in lines]
        present = all(_is_met(one) for one in wanted)
        finding = by_name["extra", extra]
        assert finding.state == (OK if present else MISSING)
        assert FEATURES[extra] in finding.text
        assert present or f'pip install "mmprefix[{extra}]"' in finding.text


def _is_met(one: Reference) -> bool:
    try:
        return metadata.version(one.name) in one.specifier
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.parametrize(
    "bounds", [">=2.9", "<3", ">=5.20,<6", "==1.2", "==2.9.*", "!=2.9.1", "~=2.9", "~=2.9.0", ">2", ""]
)
@pytest.mark.parametrize("version", ["2.9", "2.9.1+cpu", "2.10.0", "3.0", "5.20.0", "5.3", "6.0.1", "1.2.0", "2.8.4"])
def test_bounds_are_those_of_packaging(version: str, bounds: str) -> None:
    assert within(version, bounds) == SpecifierSet(bounds).contains(version)


def test_a_requirement_is_read_in_both_forms() -> None:
    for text in ("torch (>=2.14.0)", "torch>=2.14.0", 'torch[opt] >= 2.14.0 ; extra == "x"'):
        one = requirement(text)
        assert (one.name, one.bounds) == ("torch", ">=2.14.0")


def test_requirements_without_a_source_are_those_of_the_metadata(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(requirements, "_SOURCE", tmp_path / "none.toml")
    assert {one.name for one in requirements.requirements()[CORE]} >= {"torch", "transformers", "lightning"}
    assert "plots" in requirements.requirements()


def test_a_missing_or_old_distribution_is_broken(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"soxr": None, "lightning": "1.9.0"}
    real = requirements.version_of
    monkeypatch.setattr(requirements, "version_of", lambda name: versions[name] if name in versions else real(name))
    code, out, _ = shell("doctor")
    assert code == 1
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("version ")}
    assert lines["soxr"].endswith('broken   not installed; pip install "soxr>=1.0"')
    assert "1.9.0, but >=2.6,<3 is needed" in lines["lightning"]
    assert out.endswith("2 broken\n")


@pytest.mark.parametrize(
    ("torch", "vision", "audio", "expected"),
    [
        ("2.9.0", "0.24.0", "2.9.0", [("torchvision", "was built for torch")]),
        ("99.0+cpu", "99.0+cu128", "99.0+cpu", [("torchvision", "one is a CPU build")]),
        ("99.0+cu128", "99.0+cu128", "99.0+cpu", [("torchaudio", "one is a CPU build")]),
        ("99.0+cu128", "99.0+cu126", "99.0", []),
    ],
)
def test_builds_that_do_not_belong_together(
    torch: str, vision: str, audio: str, expected: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"torch": torch, "torchvision": vision, "torchaudio": audio}
    for module in (doctor, requirements):
        monkeypatch.setattr(module, "version_of", versions.get)
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch (>=2.14.0)"] if name == "torchvision" else [])
    broken = [one for one in doctor._matching() if one.state == BROKEN]
    assert [one.name for one in broken] == [name for name, _ in expected]
    for one, (_, text) in zip(broken, expected, strict=True):
        assert text in one.text


def test_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "models" / "whisper-base").mkdir(parents=True)
    (tmp_path / "models" / "tiny.gguf").touch()
    monkeypatch.setenv("MMPREFIX_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("MMPREFIX_CACHE", str(tmp_path / "models" / "tiny.gguf" / "cache"))
    by_name = findings()
    assert by_name["folder", "MMPREFIX_MODELS"].text.endswith("models: tiny.gguf, whisper-base")
    assert by_name["folder", "cache"].state == MISSING
    monkeypatch.setenv("MMPREFIX_MODELS", str(tmp_path / "none"))
    assert findings()["folder", "MMPREFIX_MODELS"].state == BROKEN


def test_a_check_that_fails_is_a_line(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> str:
        raise PermissionError("no")

    monkeypatch.setattr(machine, "cpu", fails)
    code, out, _ = shell("doctor")
    assert code == 0
    assert "machine" in out
    assert "could not be looked at (PermissionError: no)" in out


def test_devices_are_those_of_torch(shell: Shell) -> None:
    import torch

    code, out, _ = shell("doctor", "--devices", "--json")
    devices = {one["name"]: one for one in json.loads(out)["findings"] if one["section"] == "device"}
    assert code == 0
    assert devices["cpu"]["text"].startswith(f"{torch.get_num_threads()} threads, ")
    assert sum(name.startswith("cuda:") for name in devices) == torch.cuda.device_count()
