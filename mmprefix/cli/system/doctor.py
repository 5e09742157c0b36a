"""``mmprefix doctor``: versions, devices, folders, and what is missing for which feature, one line each.

Versions come from the metadata of the installed distributions, so that it answers at once and where an import would
fail; ``--devices`` imports torch (and torchcodec where it is installed) and says what they say.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mmprefix.cli.system import machine
from mmprefix.cli.system.requirements import CORE, Requirement, requirement, requirements, version_of
from mmprefix.version import __version__

FEATURES = {  # extra → what it is for
    "audio": "sounds in video files, m4a and aac",
    "av": "video files",
    "evolution": "prefixes searched without gradients",
    "gguf": "decoders in .gguf files",
    "heic": "HEIC pictures",
    "metrics": "METEOR and SPICE (they run Java)",
    "peft": "adapters of PEFT",
    "personal": "evaluate --task personal",
    "quantized": "decoders in int8 and nf4",
    "data": "encode --to webdataset",
    "demo": "the page in a browser",
    "serve": "the HTTP service",
    "docs": "building these docs as a site",
    "plots": "evaluate --det",
    "dev": "the tests",
}
OK, MISSING, BROKEN, INFO = "ok", "missing", "broken", "info"


@dataclass(frozen=True)
class Finding:
    """One line: its section, what was looked at, ok, missing (an option), broken (mend it) or info, and a sentence."""

    section: str
    name: str
    state: str
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--devices", action="store_true", help="also import torch, and list the devices it can use")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all lines")


def run(args: argparse.Namespace) -> int:
    """Print the findings; returns 0, or 1 where something that every run needs is broken."""
    findings = list(examine(devices=args.devices))
    broken = [finding for finding in findings if finding.state == BROKEN]
    if args.json:
        report = {"ok": not broken, "findings": [asdict(finding) for finding in findings]}
        sys.stdout.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    else:
        width = max(len(finding.name) for finding in findings)
        lines = [f"{one.section:9} {one.name:{width}}  {one.state:7}  {one.text}" for one in findings]
        end = f"{len(broken)} broken" if broken else "nothing is broken"
        sys.stdout.write("\n".join([*lines, end]) + "\n")
    return 1 if broken else 0


def examine(*, devices: bool = False) -> Iterator[Finding]:
    """All findings. A check that fails unforeseen is a finding too: this never raises."""
    checks: list[Callable[[], Iterator[Finding]]] = [_versions, _matching, _machine, _extras, _folders]
    for check in [*checks, *([_imported] if devices else [])]:
        try:
            yield from check()
        except Exception as error:
            name = check.__name__.removeprefix("_")
            yield Finding("doctor", name, INFO, f"could not be looked at ({type(error).__name__}: {error})")


def _versions() -> Iterator[Finding]:
    yield Finding("version", "mmprefix", OK, f"{__version__} in {Path(__file__).parents[2]}")
    python = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    yield Finding("version", "Python", OK if sys.version_info >= (3, 11) else BROKEN, python)
    core = requirements().get(CORE, [])
    if not core:
        yield Finding("version", "metadata", BROKEN, "the distribution mmprefix has none; install it with pip")
    for one in core:
        yield Finding("version", one.name, OK if one.met else BROKEN, _state(one))


def _state(one: Requirement) -> str:
    if one.installed is None:
        return f'not installed; pip install "{one}"'
    return one.installed if one.met else f'{one.installed}, but {one.bounds} is needed; pip install "{one}"'


def _matching() -> Iterator[Finding]:
    """Builds of torch, torchvision and torchaudio that do not belong together."""
    from importlib import metadata

    torch = version_of("torch")
    for name in ("torchvision", "torchaudio"):
        version = version_of(name)
        if torch is None or version is None:
            continue
        wanted = [line for line in metadata.requires(name) or [] if "extra" not in line and line.startswith("torch")]
        pinned = [one for one in map(requirement, wanted) if one.name == "torch" and not one.met]
        builds = {"CPU" if "cpu" in text.partition("+")[2] else "GPU" for text in (torch, version) if "+" in text}
        if pinned:
            yield Finding("match", name, BROKEN, f"{version} was built for torch{pinned[0].bounds}, here is {torch}")
        elif len(builds) > 1:
            text = f"{version} beside torch {torch}: one is a CPU build; install all from one index of PyTorch"
            yield Finding("match", name, BROKEN, text)
        else:
            yield Finding("match", name, OK, f"{version} goes with torch {torch}")


def _machine() -> Iterator[Finding]:
    yield Finding("machine", "CPU", OK, machine.cpu())
    yield Finding("machine", "memory", OK, machine.memory())
    cards = machine.gpus()
    for card in cards:
        yield Finding("machine", "GPU", OK, card)
    if not cards:
        yield Finding("machine", "GPU", INFO, "none is seen; everything runs on the CPU")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Finding("machine", "disk", OK, f"{free:.1f} GiB free in this folder")


def _extras() -> Iterator[Finding]:
    """Optional extras: present, or the command that adds them."""
    for extra, needed in requirements().items():
        if extra == CORE:
            continue
        lacking = [one for one in needed if not one.met]
        feature = FEATURES.get(extra, "")
        if lacking:
            advice = f'needs {", ".join(map(str, lacking))}; pip install "mmprefix[{extra}]"'
            yield Finding("extra", extra, MISSING, f"{feature}: {advice}")
        else:
            listed = ", ".join(f"{one.name} {one.installed}" for one in needed)
            yield Finding("extra", extra, OK, f"{feature}: {listed}")
    java = shutil.which("java")
    yield Finding("extra", "java", OK if java else MISSING, java or f"{FEATURES['metrics']}: no java on the PATH")
    yield Finding("extra", "ffmpeg", INFO, "not needed: PyAV brings its own libraries")


def _folders() -> Iterator[Finding]:
    place = os.environ.get("MMPREFIX_MODELS", "")
    if not place:
        yield Finding("folder", "MMPREFIX_MODELS", INFO, "not set; recipes with models:NAME need it")
    elif not Path(place).expanduser().is_dir():
        yield Finding("folder", "MMPREFIX_MODELS", BROKEN, f"{place}: no such folder")
    else:
        entries = sorted(Path(place).expanduser().iterdir())
        names = [entry.name for entry in entries if entry.is_dir() or entry.suffix == ".gguf"]
        yield Finding("folder", "MMPREFIX_MODELS", OK, f"{place}: {', '.join(names) or 'empty'}")
    base = os.environ.get("MMPREFIX_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mmprefix"
    yield _writable("cache", Path(base).expanduser())
    hub = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    yield _writable("hub cache", hub, " (offline: HF_HUB_OFFLINE)" if offline else "")
    yield _writable("this folder", Path.cwd(), " (runs/NAME is written here)")


def _writable(name: str, folder: Path, note: str = "") -> Finding:
    """Finding on ``folder``: can it, or the nearest one above that is there, be written to? Nothing is left in it."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        return Finding("folder", name, MISSING, f"{folder}: cannot be written ({error.strerror}){note}")
    return Finding("folder", name, OK, f"{folder}{note}")


def _imported() -> Iterator[Finding]:
    """Devices by torch's own word, and torchcodec, whose import fails where it does not fit."""
    try:
        lines = machine.torch_devices()
    except Exception as error:
        yield Finding("device", "torch", BROKEN, f"cannot be imported ({type(error).__name__}: {_first_line(error)})")
        return
    for line in lines:
        name, _, text = line.rpartition(": ") if line.count(": ") == 1 else line.partition(": ")
        yield Finding("device", name, OK, text)
    if version_of("torchcodec"):
        try:
            importlib.import_module("torchcodec")
        except Exception as error:
            text = f"installed, but cannot be imported ({_first_line(error)}); mmprefix does not need it"
            yield Finding("device", "torchcodec", MISSING, text)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
