"""``mmprefix caption`` with --start-with, --must-hold, --avoid and prompts that name the file, on real files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mmprefix
from mmprefix import Predictor
from mmprefix.inference.model_folder import EMBEDDED_MODEL, find_model
from tiny import demo_files
from tiny.shell import Shell

CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def model() -> Predictor:
    return mmprefix.load(device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [path for path, _ in demo_files.pictures(tmp_path_factory.mktemp("media") / "red things", 3)]


@pytest.fixture
def captions(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Captions that ``mmprefix caption`` prints, in the order of the files; it must print nothing else."""

    def of(files: list[Path], *words: str | Path) -> list[str]:
        code, out, err = Shell(capsys)("caption", EMBEDDED_MODEL, *files, *CPU, *words)
        assert code == 0, err
        lines = [line.split(": ", 1) for line in out.splitlines()]
        assert [name for name, _ in lines] == [str(file) for file in files]
        return [text for _, text in lines]

    return of


@pytest.mark.parametrize("search", [(), ("--num-beams", "4")], ids=["greedy", "beams"])
def test_captions_start_hold_and_avoid_as_asked(
    search: tuple[str, ...], captions: Callable[..., list[str]], pictures: list[Path]
) -> None:
    plain = captions(pictures, *search)
    words = [set(text.split()) for text in plain]
    avoided = next(word for word in ("in", "on", "to", "above", "left", "right") if any(word in each for each in words))
    held = next(word for word in ("cross", "ring", "star", "circle") if not all(word in each for each in words))
    asked = ("--start-with", "there is", "--must-hold", held, "--avoid", avoided, "--avoid", "picture", "top")
    texts = captions(pictures, *search, *asked)
    assert texts != plain
    for text in texts:
        assert text.startswith("there is")
        assert held in text.split()
        assert not {avoided, "picture", "top"} & set(text.split())


def test_the_shell_writes_what_the_library_writes(
    captions: Callable[..., list[str]], pictures: list[Path], model: Predictor
) -> None:
    texts = captions(pictures, "--must-hold", "small blue", "ring", "--num-beams", "3")
    assert texts == model([str(file) for file in pictures], must_hold=["small blue", "ring"], num_beams=3)
    assert all("small blue" in text and "ring" in text for text in texts)


def test_contradictions_are_one_line(capsys: pytest.CaptureFixture[str], pictures: list[Path]) -> None:
    shell = Shell(capsys)
    both = ("--must-hold", "ring", "--avoid", "ring")
    assert "ring" in shell.refuses("caption", EMBEDDED_MODEL, pictures[0], *CPU, *both)
    short = ("--must-hold", "a small red cross", "--max-new-tokens", "2")
    assert "max_new_tokens" in shell.refuses("caption", EMBEDDED_MODEL, pictures[0], *CPU, *short)


def test_a_prompt_names_the_file_its_stem_and_its_folder(
    captions: Callable[..., list[str]], tmp_path: Path, model: Predictor
) -> None:
    """A picture whose names are words of the decoder: each variable gives the caption of the words it stands for."""
    folder = tmp_path / "there is a"
    ((made, _),) = demo_files.pictures(folder, 1)
    file = made.rename(folder / "small red")
    for prompt, filled in (
        ("{folder}", "there is a"),
        ("{name}", "small red"),
        ("{folder} {stem}", "there is a small red"),
    ):
        assert captions([file], "--prompt", prompt) == [model(str(file), prompt=filled)], prompt
    assert len({model(str(file), prompt=prompt) for prompt in ("", "there is a small red")}) == 2


def test_stem_is_the_name_without_its_suffix(
    captions: Callable[..., list[str]], tmp_path: Path, model: Predictor
) -> None:
    ((made, _),) = demo_files.pictures(tmp_path, 1)
    file = made.rename(tmp_path / "small.png")
    assert captions([file], "--prompt", "a {stem}") == [model(str(file), prompt="a small")]


def test_a_wrong_prompt_is_one_line_that_names_the_variables(
    capsys: pytest.CaptureFixture[str], pictures: list[Path]
) -> None:
    shell = Shell(capsys)
    message = shell.refuses("caption", EMBEDDED_MODEL, pictures[0], *CPU, "--prompt", "a {size}")
    assert "no variable {size}; there are {name}, {stem}, {folder}" in message
    assert "a literal brace is doubled" in shell.refuses(
        "caption", find_model(EMBEDDED_MODEL), pictures[0], "--prompt", "{"
    )
