"""Texts that no tokenizer can read are refused by name, wherever they come from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmprefix.data.pairs import PairData
from mmprefix.decoders import CausalDecoder
from mmprefix.errors import InputError, require_text
from tiny.decoders import save_decoder

HALVES = ["\ud800", "caf\udce9", "a \udfff b"]  # half a character, and bytes of another encoding (PEP 383)


@pytest.mark.parametrize("text", HALVES)
def test_half_a_character_is_refused_by_name(text: str, tmp_path: Path) -> None:
    require_text("prompt", "ein Café 🐕")
    with pytest.raises(InputError, match=r"prompt: '.*' holds bytes that are not UTF-8, or half a character"):
        require_text("prompt", text)
    with pytest.raises(InputError, match=r"data\.prompt: "):
        PairData(train="m.jsonl", prompt=text)
    decoder = CausalDecoder(save_decoder(tmp_path / "decoder"))
    with pytest.raises(InputError, match="a text for the decoder: "):
        decoder.codec.target_ids("", text)


@pytest.mark.parametrize("option", ["--prompt", "--context"])
def test_bytes_of_another_encoding_in_the_shell(option: str, tmp_path: Path) -> None:
    words = [b"-m", b"mmprefix", b"caption", b"model", b"a.jpg", option.encode(), b"caf\xe9"]
    done = subprocess.run(
        [sys.executable.encode(), *words],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 2
    assert line.startswith(f"mmprefix: argument {option}: ")
    assert r"'caf\udce9' holds bytes that are not UTF-8" in line
