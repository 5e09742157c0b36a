"""Sets and languages for which a figure would say nothing: said instead of 0 or 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprefix.cli.main import main
from mmprefix.metrics import caption
from mmprefix.metrics.caveats import is_unspaced, undefined_metrics, word_notes

CASE = Path(__file__).resolve().parents[3] / "shared" / "cases" / "21-metrics-silent" / "one.jsonl"


def write(file: Path, *rows: tuple[str, list[str]]) -> str:
    """A file of predictions, each with its references."""
    lines = [json.dumps({"id": str(n), "prediction": text, "references": refs}) for n, (text, refs) in enumerate(rows)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("count", [1, 3])
def test_items_without_idf_have_no_cider(tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("a dog barks", ["a dog barks", "a dog"])] * count
    assert caption([text for text, _ in rows], [refs for _, refs in rows])["cider_d"] == 0  # perfect, and zero
    file = write(tmp_path / "p.jsonl", *rows)
    assert main(["evaluate", file]) == 0
    table = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert table["bleu_1"] == "1.0000"
    assert table["cider_d"].startswith("not defined: " + ("one item has no idf" if count == 1 else "items that all"))
    assert main(["evaluate", file, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "cider_d" not in report["scores"]
    assert "no idf" in report["not_available"]["cider_d"]
    assert main(["evaluate", file, "--metrics", "cider_d"]) == 1  # asked for, and not there


def test_different_items_have_cider(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "p.jsonl", ("a dog barks", ["a dog barks"]), ("it rains", ["it rains", "rain"]))
    assert undefined_metrics([["a dog barks"], ["it rains", "rain"]]) == {}
    assert main(["evaluate", file, "--metrics", "cider_d"]) == 0
    assert float(capsys.readouterr().out.split()[-1]) == 5


@pytest.mark.parametrize(
    ("text", "unspaced"),
    [
        ("一只狗在草地上奔跑", True),
        ("一只狗在草地上奔跑，旁边有一个孩子。", True),
        ("犬が公園で走っている。", True),
        ("ねこがすわっている", True),
        ("สุนัขกำลังวิ่งอยู่ในสวน", True),
        ("一只 狗 在 草地 上 奔跑", False),  # parted by jieba
        ("一 只 狗", False),
        ("犬 が 公園 で 走っ て いる 。", False),
        ("สุนัข กำลัง วิ่ง อยู่ ใน สวน", False),
        ("개가 공원에서 달린다", False),  # Korean has spaces
        ("a dog runs in the park", False),
        ("собака бежит", False),
        ("a photo of 猫", False),
        ("", False),
        ("猫", False),
    ],
)
def test_texts_without_spaces_are_known(text: str, unspaced: bool) -> None:
    assert is_unspaced(text) == unspaced


def test_languages_without_spaces_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("一只狗在跑步", ["一只狗在草地上跑步"]), ("一个孩子在笑", ["孩子在公园里笑"])]
    file = write(tmp_path / "p.jsonl", *rows)
    assert main(["evaluate", file]) == 0
    assert "4 of 4 texts are written without spaces (Chinese, Japanese, Thai ...)" in capsys.readouterr().err
    assert main(["evaluate", file, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["notes"] == word_notes(*zip(*rows, strict=True))
    assert err == ""
    parted = [(" ".join(text), [" ".join(ref) for ref in refs]) for text, refs in rows]
    assert main(["evaluate", write(tmp_path / "q.jsonl", *parted)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert float(out.split("bleu_1")[1].split()[0]) > 0.5


def test_the_file_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    if not CASE.exists():
        pytest.skip(f"{CASE} is not here")
    assert main(["evaluate", str(CASE)]) == 0
    assert "cider_d      not defined: one item has no idf" in capsys.readouterr().out
