"""Studies of served prefixes run on a tiny decoder and say what they measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.studies.serving import compressed_prefixes
from tiny.decoders import TEXT, save_decoder


def test_compressed_prefixes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_decoder(tmp_path / "decoder", "llama", sharp=3.0)
    (tmp_path / "text.md").write_text(TEXT[0] * 3)
    options = {"model": tmp_path / "decoder", "text": tmp_path / "text.md", "json": tmp_path / "out.json"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    compressed_prefixes.main([*words, "--length", "16", "--tokens", "32"])
    rows = {row["kept as"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert len(rows) == 15
    whole = rows["float32"]
    assert rows["float16"]["bytes"] * 2 == whole["bytes"]
    for name, row in rows.items():
        if name.startswith("int8"):
            assert abs(row["nll"] - whole["nll"]) < 0.005
            assert row["bytes"] < whole["bytes"] / 2
    assert abs(rows["no prefix"]["nll"] - whole["nll"]) > 0.005
    assert "int4, scales by mixed" in capsys.readouterr().out
