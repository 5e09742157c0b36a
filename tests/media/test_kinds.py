"""Table of input kinds: recognition by suffix, bytes and type; a row for every encoder's kind."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import mmprefix.encoders
from mmprefix.encoders.base import Encoder
from mmprefix.encoders.picture_set import PictureSet
from mmprefix.encoders.prompted import Prompted
from mmprefix.errors import InputError
from mmprefix.media.kinds import FILE_KINDS, KINDS, FileInfo, kind_of
from mmprefix.media.source import FrameSequence, Texts, Waveform
from tiny.media import RATE, scene, tone
from tiny.videos import SIZE, save_video


def test_every_encoder_reads_a_kind_of_the_table() -> None:
    folder = Path(str(mmprefix.encoders.__file__)).parent
    modules = [importlib.import_module(f"mmprefix.encoders.{file.stem}") for file in folder.glob("[a-z]*.py")]
    classes = {cls for module in modules for cls in vars(module).values() if isinstance(cls, type)}
    encoders = [cls for cls in classes if issubclass(cls, Encoder) and cls not in (Encoder, PictureSet)]
    kinds = {cls.input_kind for cls in encoders if cls is not Prompted}  # it reads what the encoder inside reads
    assert kinds == KINDS.keys()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """One file of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff"):
        scene().save(folder / f"picture.{suffix}")
    for suffix in ("wav", "ogg", "flac"):
        soundfile.write(folder / f"sound.{suffix}", tone(), RATE)
    for suffix in ("mp4", "mkv", "avi", "webm", "mov"):
        save_video(folder / f"video.{suffix}", count=5)
    (folder / "signals.json").write_text("[0.5, 1.0]")
    np.save(folder / "signals.npy", np.zeros(2))
    names = {"image": "picture", "audio": "sound", "video": "video", "signals": "signals"}
    return {kind: sorted(folder.glob(f"{name}.*")) for kind, name in names.items()}


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_a_file_is_recognised_by_its_suffix(kind: str, samples: dict[str, list[Path]]) -> None:
    assert len(samples[kind]) >= 2
    for file in samples[kind]:
        assert kind_of(file) == kind_of(str(file)) == kind


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_file_without_a_name_is_recognised_by_its_first_bytes(
    kind: str, samples: dict[str, list[Path]], tmp_path: Path
) -> None:
    for file in samples[kind]:
        unnamed = tmp_path / "unnamed"
        unnamed.write_bytes(file.read_bytes())
        assert kind_of(unnamed) == kind_of(file.read_bytes()) == kind, file


def test_unknown_bytes_have_no_kind(samples: dict[str, list[Path]]) -> None:
    assert {kind_of(file.read_bytes()) for file in (*samples["audio"], *samples["signals"])} == {None}
    assert kind_of(b"") is None


def test_values_in_memory_are_recognised_by_their_type(tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = [
        (scene(), "image"),
        (Waveform(tone(), RATE), "audio"),
        (FrameSequence([scene()]), "video"),
        (tmp_path, "video"),  # a folder of pictures
        ((0.5, 1.0), "signals"),
        ([0.5, 1], "signals"),
        (Texts(("a dog",)), "text"),
    ]
    for value, kind in cases:
        assert kind_of(value) == kind
    for value in (np.zeros(3), None, [], ["a.png"], (True, False)):
        with pytest.raises(InputError, match="give a file, bytes, a PIL image"):
            kind_of(value)
    with pytest.raises(InputError, match=r"gone\.png: no such file"):
        kind_of(tmp_path / "gone.png")


@pytest.mark.parametrize("decode", [False, True])
def test_each_kind_is_measured(decode: bool, samples: dict[str, list[Path]]) -> None:
    expected = {
        "image": FileInfo(size=(40, 20)),
        "audio": FileInfo(seconds=1.0),
        "video": FileInfo(seconds=0.5, size=SIZE, frames=5),
        "signals": FileInfo(),
    }
    for kind, files in samples.items():
        for file in files:
            info = KINDS[kind].inspect(file, 0.0, None, decode)
            assert info.seconds == (pytest.approx(expected[kind].seconds, abs=0.01) if expected[kind].seconds else None)
            assert (info.size, info.frames) == (expected[kind].size, expected[kind].frames)
            with pytest.raises(InputError):
                KINDS[kind].inspect(file.with_name("gone" + file.suffix), 0.0, None, decode)


@pytest.mark.parametrize("decode", [False, True])
def test_a_text_is_checked_and_an_empty_one_refused(decode: bool) -> None:
    inspect = KINDS["text"].inspect
    assert inspect(Texts(("a dog", " ", "a cat ")), 0.0, None, decode) == FileInfo()
    for texts in ((), ("", " \n")):
        with pytest.raises(InputError, match="the given text is empty"):
            inspect(Texts(texts), 0.0, None, decode)
    with pytest.raises(InputError, match=r"dog\.png: is no text"):
        inspect("dog.png", 0.0, None, decode)


def test_no_suffix_belongs_to_two_kinds() -> None:
    suffixes = [suffix for kind in KINDS.values() for suffix in kind.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in suffixes)
    assert all(kind.read_as in (None, *KINDS) for kind in KINDS.values())
    assert Image.registered_extensions().keys() >= set(KINDS["image"].suffixes) - {".avif", ".heic", ".heif"}
