"""Limits of the page: one sentence for each thing that is too much, before anything is decoded."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path

import pytest

from mmprefix.cli.main import verb_parser
from mmprefix.demo import limits as demo_limits
from mmprefix.demo.limits import Deadline, DemoLimits, RateLimit, check_file
from mmprefix.errors import InputError
from tiny import demo_files


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (demo_files.large_file, "big.png", "big.png: 200 MB; this page takes files of at most 50 MB"),
        (demo_files.text_file, "text.png", "text.png: not a picture that can be read"),
        (demo_files.text_file, "text.txt", "text.txt: neither a picture nor a sound that can be read"),
        (demo_files.long_sound, "long.wav", "long.wav: 600 s long; this page takes sounds of at most 120 s"),
        (demo_files.huge_picture, "huge.png", "pixels"),
        (lambda path: path.write_bytes(b""), "none.wav", "none.wav: the file is empty"),
    ],
)
def test_a_file_beyond_a_limit_is_one_sentence(make, name: str, message: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    start = time.process_time()
    with pytest.raises(InputError) as refused:
        check_file(tmp_path / name, name, DemoLimits())
    text = str(refused.value)
    assert text.startswith(f"{name}: ")
    assert message in text
    assert str(tmp_path) not in text
    assert "MMPREFIX_" not in text  # advice for whoever starts the page
    assert time.process_time() - start < 20  # 900 million pixels were not decoded


def test_a_picture_within_pillow_s_limit_but_not_the_page_s_is_refused(tmp_path: Path) -> None:
    file = demo_files.huge_picture(tmp_path / "wide.png", 8000)
    assert check_file(file, "wide.png", DemoLimits(max_pixels=70e6)) == "image"
    with pytest.raises(
        InputError, match=r"wide.png: 8,000 x 8,000 pixels; this page takes pictures of at most 50 mill"
    ):
        check_file(file, "wide.png", DemoLimits())


@pytest.mark.parametrize("option", ["max_mb", "queue", "rate", "timeout"])
def test_a_limit_that_allows_nothing_is_refused(option: str) -> None:
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')} 0: give a number above 0"):
        DemoLimits(**{option: 0})


def test_the_shell_s_defaults_are_those_of_the_page() -> None:
    args = verb_parser("demo").parse_args([])
    names = [each.name for each in fields(DemoLimits)]
    assert DemoLimits(**{name: getattr(args, name) for name in names}) == DemoLimits()


def test_calls_of_one_address_are_counted_by_the_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(demo_limits.time, "monotonic", lambda: now[0])
    rate = RateLimit(2)
    for visitor in ("a", "a", "b", "b"):
        rate.count(visitor)
    with pytest.raises(InputError, match="2 calls a minute are the limit of this page; wait 60 s"):
        rate.count("a")
    now[0] += 61
    rate.count("a")


def test_a_call_ends_when_its_time_is_over() -> None:
    Deadline(60).check()
    late = Deadline(1e-9)
    assert late.is_over
    with pytest.raises(InputError, match="the time limit of this page"):
        late.check()
