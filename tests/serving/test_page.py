"""docs/serving.md: its commands and its Python run as they stand there, against a server of the embedded model."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmprefix.cli.serving.serve import MAX_PIXELS, MAX_SECONDS
from mmprefix.serving.calls import ServedModel
from mmprefix.serving.service import ServeOptions
from tiny.service import Running, Sample, running

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(served: list[ServedModel]) -> Iterator[Running]:
    with running([ServedModel("example", served[0].predictor)]) as one:
        yield one


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: list[Sample]) -> Path:
    """Working folder with the two files of the page."""
    (tmp_path / "picture.png").write_bytes(samples[0].content)
    (tmp_path / "sound.wav").write_bytes(samples[6].content)
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def block(mark: str, server: Running) -> str:
    """Block of the page below ``mark``, for the port of ``server``."""
    (lines,) = re.findall(rf"<!-- run: {mark} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert "http://127.0.0.1:8000" in lines
    return lines.replace("http://127.0.0.1:8000", server.url)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_commands_run(server: Running, folder: Path, samples: list[Sample]) -> None:
    for mark, words in (("curl", '"index":1'), ("json", "data: [DONE]")):
        done = subprocess.run(["bash", "-euc", block(mark, server)], capture_output=True, text=True, check=True)
        assert words in done.stdout
        assert "error" not in done.stdout
    assert samples[0].text in done.stdout


@pytest.mark.parametrize("mark", ["python", "openai"])
def test_the_python_runs(
    mark: str, server: Running, folder: Path, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(block(mark, server), {})
    out = capsys.readouterr().out
    for sample in (samples[0], samples[6]):
        assert out.count(sample.text) == (2 if mark == "openai" else 1)


def test_the_defaults_of_the_table_are_those_of_the_service() -> None:
    options = ServeOptions()
    rows = dict(re.findall(r"^\| `(--[\w-]+)`[^|]*\| ([^|]*) \|", PAGE, re.MULTILINE))
    assert rows["--queue"].startswith(f"{options.queue} ")
    assert rows["--queue-bytes"].startswith(f"{options.queue_bytes >> 20} MiB")
    assert rows["--max-bytes"].startswith(f"{options.max_bytes >> 20} MiB")
    assert rows["--max-files"].startswith(f"{options.max_files} ")
    assert rows["--max-beams"] == f"{options.max_beams} beams and texts, {options.max_tokens} tokens"
    assert rows["--max-pixels"] == f"{MAX_PIXELS // 10**6} million of a picture, {MAX_SECONDS} of a sound"
    assert rows["--timeout"].startswith(f"{options.timeout:g} s")
    assert f"`--max-wait-ms` ({1000 * options.max_wait:g})" in PAGE
    assert f"`--max-batch` ({options.max_batch})" in PAGE
    assert f"`--streams` ({options.streams})" in PAGE
