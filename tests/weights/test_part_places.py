"""Frozen parts of a saved model: no place of this machine is written, parts are searched by name, or packed."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

import mmprefix
from mmprefix import InputError
from mmprefix.saved_model import ImportRecord, ModelSettings, TrainingRecord
from mmprefix.weights import part_places
from tiny import models as tiny_models


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_models.frozen_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def parts(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Frozen parts below tmp_path/home, which is the user's; nothing is remembered from other tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MMPREFIX_CACHE", str(tmp_path / "cache"))
    return {name: Path(shutil.copytree(folder, tmp_path / "home" / name)) for name, folder in made.items()}


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    (tmp_path / "a.wav").write_bytes(tiny_models.sound_bytes(tiny_models.tone(0.5, 300.0)))
    return tmp_path / "a.wav"


def test_no_file_of_a_saved_model_holds_a_path_of_this_machine(parts: dict[str, Path], tmp_path: Path) -> None:
    settings = ModelSettings(
        trained=TrainingRecord([str(tmp_path / "home" / "data")]),
        imported=ImportRecord("clipcap", str(tmp_path / "home" / "coco.pt")),
    )
    model = mmprefix.Predictor(tiny_models.build_model(parts, "image", "audio"), settings)
    model.save(tmp_path / "m")
    model.save(tmp_path / "packed", pack=True)
    for file in [file for folder in ("m", "packed") for file in (tmp_path / folder).glob("*")]:
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file


def test_parts_are_found_by_memory_by_variable_beside_the_model_and_as_they_were_named(
    parts: dict[str, Path], tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tiny_models.save_model(tmp_path / "m", parts, "audio")
    expected = mmprefix.load(directory, device="cpu")(sound)  # by memory
    shutil.rmtree(tmp_path / "cache")  # another machine
    with pytest.raises(InputError) as error:
        mmprefix.load(directory, device="cpu")
    assert f"the encoder of branch 'audio' is not at {directory}/parts/audio; say where it is now: " in str(error.value)
    assert "--part audio=PLACE in the shell, parts={'audio': PLACE} in Python, or MMPREFIX_PARTS=" in str(error.value)
    monkeypatch.setenv("MMPREFIX_PARTS", f"{tmp_path}/nowhere:{tmp_path}/home")
    assert mmprefix.load(directory, device="cpu")(sound) == expected
    monkeypatch.setenv("MMPREFIX_PARTS", f"{parts['audio']}:{parts['decoder']}")
    assert mmprefix.load(directory, device="cpu")(sound) == expected
    monkeypatch.delenv("MMPREFIX_PARTS")
    (directory / "parts").symlink_to(tmp_path / "home")
    assert mmprefix.load(directory, device="cpu")(sound) == expected
    monkeypatch.chdir(tmp_path / "home")
    relative = tiny_models.save_model(tmp_path / "n", {name: Path(name) for name in parts}, "audio")
    shutil.rmtree(tmp_path / "cache")
    assert mmprefix.load(relative, device="cpu")(sound) == expected


def test_a_packed_model_needs_nothing_else(
    parts: dict[str, Path], tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mmprefix.Predictor(tiny_models.build_model(parts, "image", "audio"))
    model.save(tmp_path / "m", pack=True)
    expected = model(sound)
    for folder in ("home", "cache"):
        shutil.rmtree(tmp_path / folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    moved = (tmp_path / "m").rename(tmp_path / "elsewhere" / "m")
    again = mmprefix.load(moved, device="cpu")
    assert again(sound) == expected
    again.save(moved, pack=True)  # over itself
    assert mmprefix.load(moved, device="cpu")(sound) == expected
    assert sorted(folder.name for folder in (moved / "parts").iterdir()) == ["audio", "decoder", "image"]


def test_models_of_the_environment_keep_their_name_and_are_packed(
    parts: dict[str, Path], tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMPREFIX_MODELS", str(tmp_path / "home"))
    model = mmprefix.Predictor(tiny_models.build_model({name: Path(f"models:{name}") for name in parts}, "audio"))
    expected = model(sound)
    model.save(tmp_path / "m")
    model.save(tmp_path / "packed", pack=True)
    (tmp_path / "home").rename(tmp_path / "away")
    assert mmprefix.load(tmp_path / "packed", device="cpu")(sound) == expected
    with pytest.raises(mmprefix.InputError, match=r"'models:audio': no such folder"):
        mmprefix.load(tmp_path / "m", device="cpu")
    monkeypatch.setenv("MMPREFIX_MODELS", str(tmp_path / "away"))
    assert mmprefix.load(tmp_path / "m", device="cpu")(sound) == expected


def test_parts_above_the_limit_stay_where_they_are(
    parts: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {name: part_places.megabytes(path) for name, path in parts.items()}
    limit = (min(sizes.values()) + max(sizes.values())) / 2
    with caplog.at_level(logging.INFO, "mmprefix"):
        mmprefix.Predictor(tiny_models.build_model(parts, "image", "audio")).save(
            tmp_path / "m", pack=True, pack_limit=limit
        )
    inside = {folder.name for folder in (tmp_path / "m" / "parts").iterdir()}
    assert inside == {name for name, size in sizes.items() if size <= limit} != set(parts)
    for name, size in sizes.items():
        line = f"packed {name}: {size:.1f} MB" if size <= limit else f"{name} has {size:.1f} MB, and the limit is"
        assert line in caplog.text
    assert list(mmprefix.load(tmp_path / "m", device="cpu").model.encoders) == ["image", "audio"]


def test_two_parts_of_one_name_are_kept_apart(parts: dict[str, Path], tmp_path: Path) -> None:
    for name in ("image", "decoder"):
        (tmp_path / "home" / name).rename(tmp_path / name)
        (tmp_path / name).mkdir(exist_ok=True)
        shutil.move(tmp_path / name, tmp_path / f"of-{name}" / "tiny")
        parts[name] = tmp_path / f"of-{name}" / "tiny"
    mmprefix.Predictor(tiny_models.build_model(parts, "image")).save(tmp_path / "m", pack=True)
    assert sorted(folder.name for folder in (tmp_path / "m" / "parts").iterdir()) == ["tiny", "tiny-2"]
    assert mmprefix.load(tmp_path / "m", device="cpu").kinds == {"image": "image"}


def test_changed_files_of_packed_parts_are_refused(parts: dict[str, Path], tmp_path: Path) -> None:
    mmprefix.Predictor(tiny_models.build_model(parts, "audio")).save(tmp_path / "m", pack=True)
    for name in ("decoder/tokenizer.json", "decoder/config.json", "audio/config.json", "decoder/model.safetensors"):
        file = tmp_path / "m" / "parts" / name
        whole = file.read_bytes()
        file.write_bytes(whole + b" ")
        with pytest.raises(InputError, match=r"is not the file that was saved here|was trained with|cannot be read"):
            mmprefix.load(tmp_path / "m", device="cpu")
        file.write_bytes(whole)
    mmprefix.load(tmp_path / "m", device="cpu")
