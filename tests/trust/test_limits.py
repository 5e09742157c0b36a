"""Small inputs that ask for gigabytes are refused in one line, before memory is taken."""

from __future__ import annotations

import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from mmprefix.errors import InputError
from mmprefix.media.audio import read_waveform
from mmprefix.media.image import picture_size, read_picture
from mmprefix.media.source import open_source
from mmprefix.trust.limits import limit

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


def peak() -> int:
    """Most memory of this process so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_picture_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    file = tmp_path / "wide.png"
    Image.new("1", (12_000, 12_000)).save(file)
    before = peak()
    for read in (read_picture, picture_size):
        with pytest.raises(InputError, match=r"wide.png: 144,000,000 pixels, .*MMPREFIX_MAX_PIXELS"):
            read(file)
    assert peak() - before < 100e6
    monkeypatch.setenv("MMPREFIX_MAX_PIXELS", "1.5e8")
    assert picture_size(file) == (12_000, 12_000)


def test_more_pixels_than_pillow_reads_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    file = tmp_path / "wide.png"
    Image.new("1", (20_000, 10_000)).save(file)
    for read in (read_picture, picture_size):
        with pytest.raises(InputError, match=r"wide.png: more than 89,478,485 pixels, .*MMPREFIX_MAX_PIXELS"):
            read(file)
    monkeypatch.setenv("MMPREFIX_MAX_PIXELS", "2.5e8")
    assert picture_size(file) == (20_000, 10_000)


def test_a_sound_of_too_many_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.__version__  # its import takes more memory than is measured below
    file = tmp_path / "long.flac"
    soundfile.write(file, np.zeros(4000 * 1000, np.int16), 1000)
    before = peak()
    with pytest.raises(InputError, match=r"long.flac: 4,000 seconds, the limit is 3,600; .*MMPREFIX_MAX_SECONDS"):
        read_waveform(file, 16000)
    assert peak() - before < 100e6
    assert len(read_waveform(file, 1000, 10.0, 12.0)) == 2000  # only what is decoded counts
    monkeypatch.setenv("MMPREFIX_MAX_SECONDS", "5000")
    assert len(read_waveform(file, 1000)) == 4_000_000


def test_a_header_of_one_hertz(tmp_path: Path) -> None:
    data = np.zeros(44_100, "<i2").tobytes()
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, 1, 2, 2, 16, b"data", len(data)
    )
    (tmp_path / "slow.wav").write_bytes(head + data)
    with pytest.raises(InputError, match=r"slow.wav: its header says 1 Hz"):
        read_waveform(tmp_path / "slow.wav", 16000)


def test_an_archive_of_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(3_000_000))
    member = f"{tmp_path / 'z.zip'}::zeros"
    assert len(open_source(member).read()) == 3_000_000
    monkeypatch.setenv("MMPREFIX_MAX_BYTES", "2000000")
    with pytest.raises(InputError, match=r"z.zip::zeros: 3,000,000 bytes, the limit is 2,000,000"):
        open_source(member)


@pytest.mark.parametrize("value", ["", "0", "-1", "nan", "many"])
def test_a_limit_is_a_positive_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPREFIX_MAX_PIXELS", value)
    with pytest.raises(InputError, match="give a positive number"):
        limit("pixels")


@pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not there")
@pytest.mark.parametrize("folder", ["f06-wav-rate-1-hz", "f07-small-files-large-memory"])
def test_inputs_that_failed(folder: str) -> None:
    before = peak()
    for file in sorted((CASES / folder).iterdir()):
        sound = file.suffix in (".wav", ".flac")
        with pytest.raises(InputError, match=r"the limit is|its header says"):
            read_waveform(file, 16000) if sound else read_picture(file)
    assert peak() - before < 200e6
