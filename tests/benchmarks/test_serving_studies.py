"""Studies of served prefixes run on a tiny decoder and say what they measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.serving import side_terms
from benchmarks.studies.serving import compressed_prefixes, drafting, static_quantization
from mmprefix.decoders import CausalDecoder
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


def test_drafting(tmp_path: Path) -> None:
    words = ["--train", "6", "--test", "3", "--steps", "4", "--tokens", "10", "--json", str(tmp_path / "out.json")]
    drafting.main(words)
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert figures["texts"] == figures["equal"] == 3
    assert figures["tokens a pass"] == pytest.approx(figures["tokens"] / figures["passes"])


def test_side_terms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--layers", "2", "--width", "64", "--vocab", "500", "--prompt", "w1", "--length", "3", "--new-tokens", "3"]
    results = side_terms.main([*words, "--batches", "1", "2", "--repeat", "2", "--json", str(tmp_path / "out.json")])
    names = {side_terms.NONE, *side_terms.builders(3)}
    for case in json.loads((tmp_path / "out.json").read_text())["cases"]:
        assert case.keys() - {"batch"} == names
        assert all(len(case[name]["cpu_s"]) == 2 for name in names)
    table = capsys.readouterr().out
    plain = next(line for line in table.splitlines() if line.startswith(f"| {side_terms.PLAIN} "))
    assert plain.count(" 1.00 |") == len(results["cases"]) == 2
    assert all(f"| {name} " in table for name in names)


def test_the_prefixes_of_the_study_all_reach_the_text(tmp_path: Path) -> None:
    """A prefix that changed nothing would cost nothing."""
    decoder = CausalDecoder(save_decoder(tmp_path / "decoder", sharp=3.0)).eval()
    made = side_terms.prefixes(decoder, 3, 1)
    with torch.no_grad():
        losses = {n: decoder.text_loss(decoder.prefill(p), ["a"], [["red hill"]]).nll.item() for n, p in made.items()}
    assert len(set(losses.values())) == len(losses)


def test_static_quantization(tmp_path: Path) -> None:
    save_decoder(tmp_path / "decoder", "llama", sharp=3.0)
    (tmp_path / "text.md").write_text(TEXT[0] * 6)
    options = {"model": tmp_path / "decoder", "text": tmp_path / "text.md", "json": tmp_path / "out.json"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    static_quantization.main([*words, "--chunks", "4", "--tokens", "12", "--eta", "2", "--bits", "16", "3"])
    plain, prefixed = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert plain["16 bits"] == pytest.approx(plain["not rounded"], rel=0.02)  # some are beyond the range
    assert plain["3 bits"] != plain["16 bits"]
    assert prefixed["not rounded"] != plain["not rounded"]
