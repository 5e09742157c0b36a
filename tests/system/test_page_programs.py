"""Programs that the documentation calls with ``python``: each option of such a line is one that the program lists."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from tiny import pages

ROOT = pages.ROOT
INLINE = re.compile(r"`(python (?:-m [\w.]+|[\w/]+\.py)[^`]*)`")
PASSED_ON = "--fit"  # of benchmarks.studies.mappers: what stands behind it goes to mmprefix fit


def lines_of(page: str) -> Iterator[str]:
    """Command lines of ``page`` that call Python, of its blocks and of its text."""
    for one in pages.blocks(page):
        if one.language in ("bash", ""):
            yield from pages.statements(one.text)
    text = pages.FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    yield from (call.replace("\n", " ") for call in INLINE.findall(text))


def options_by_program() -> dict[str, dict[str, str]]:
    """Options of each program, each with a page that has it; a program is a module or a path."""
    named: dict[str, dict[str, str]] = {}
    for page in [*pages.pages(), "benchmarks/README.md"]:
        for line in lines_of(page):
            if not line.startswith("python ") or line.startswith("python -c"):
                continue
            words = pages.words_of(line)[1:]
            program, *rest = words[1:] if words[0] == "-m" else words
            own = rest[: rest.index(PASSED_ON) + 1] if PASSED_ON in rest else rest
            options = named.setdefault(program, {})
            options.update((word.partition("=")[0], page) for word in own if re.fullmatch(r"--[a-z][\w-]*(=.*)?", word))
    return {program: options for program, options in named.items() if options}


def known_options(program: str, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Options that ``python PROGRAM --help`` lists, run in this process."""
    patch.setattr(sys, "argv", [program, "--help"])
    patch.syspath_prepend(str(ROOT))
    if is_file := program.endswith(".py"):
        patch.syspath_prepend(str((ROOT / program).parent))
    run = partial(runpy.run_path, str(ROOT / program)) if is_file else partial(runpy.run_module, program)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(run_name="__main__")
    assert not stop.value.code, program
    return set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_options_of_programs_are_known_to_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong: list[str] = []
    named = options_by_program()
    assert len(named) > 15
    for program, options in named.items():
        if program.split(".")[0] not in ("benchmarks", "mmprefix") and not (ROOT / program).is_file():
            continue  # another package's
        unknown = options.keys() - known_options(program, monkeypatch, capsys)
        wrong += [f"{options[name]}: {program} {name}" for name in sorted(unknown)]
    assert wrong == []
