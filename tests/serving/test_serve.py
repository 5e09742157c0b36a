"""The verb ``serve`` as a process: it says where it listens, answers, and ends at SIGTERM with what it had begun."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmprefix.cli.main import main
from tiny.service import Sample
from tiny.shell import Shell


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Server of the embedded model in an empty folder."""
    command = [sys.executable, "-m", "mmprefix", "serve", "--port", "0", "--drain", "1.5", "--device", "cpu"]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "MMPREFIX_API_KEY": "k", "TMPDIR": str(tmp_path)}
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    yield running
    running.kill()
    running.wait(20)


def lines_until(process: subprocess.Popen[str], word: str) -> list[str]:
    """Lines on standard error up to the first with ``word``."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError("".join(lines))


@pytest.mark.slow
def test_a_stop_answers_what_was_begun(process: subprocess.Popen[str], samples: list[Sample], tmp_path: Path) -> None:
    before = lines_until(process, '"serving"')
    address = json.loads(before[-1])["address"]
    assert process.stderr is not None
    client = httpx.Client(base_url=address, headers={"authorization": "Bearer k"}, timeout=60, trust_env=False)
    assert client.get("/readyz").status_code == 200
    assert client.get("/v1/models", headers={"authorization": ""}).status_code == 401
    answers: list[httpx.Response] = []
    files = [("f", ("../" + sample.name, sample.content)) for sample in samples]
    slow = {"beams": "16", "n": "16"}

    def ask() -> None:
        answers.append(httpx.post(f"{address}/v1/caption", files=files, data=slow, headers=client.headers, timeout=60))

    asking = threading.Thread(target=ask)
    asking.start()
    while not re.search(r"mmprefix_inputs_inside 12\.0", client.get("/metrics").text):
        assert asking.is_alive()
    process.send_signal(signal.SIGTERM)
    statuses: list[int] = []
    while not statuses or statuses[-1] == 200:
        statuses.append(client.get("/readyz").status_code)
    assert statuses[-1] == 503
    refused = client.post("/v1/caption", files=files[:1])
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "stopping"
    assert client.get("/healthz").status_code == 200
    asking.join(60)
    assert process.wait(60) == 143
    assert answers[0].status_code == 200
    assert [len(row["texts"]) for row in answers[0].json()["results"]] == [16] * len(samples)
    *rest, last = process.stderr.read().splitlines()
    assert last == "mmprefix: stopped by SIGTERM; every request that had begun is answered"
    entries: list[dict[str, Any]] = [json.loads(line) for line in [*before, *rest]]
    asked = [entry for entry in entries if entry.get("path") == "/v1/caption"]
    assert sorted(entry["status"] for entry in asked) == [200, 503]
    assert answers[0].headers["x-request-id"] in {entry["request"] for entry in asked}
    assert samples[0].text not in "".join(rest)
    assert samples[0].name not in "".join(rest)
    assert list(tmp_path.iterdir()) == []


def test_what_the_verb_refuses(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert shell.refuses("serve", "--port", port) == f"--host 127.0.0.1 --port {port}: Address already in use"
    assert "--port 70000" in shell.refuses("serve", "--port", "70000")
    assert "no_such" in shell.refuses("serve", "--port", "0", "no_such")
    assert "max-batch 0: give a number from 1 on" in shell.refuses("serve", "--max-batch", "0")
    assert "--drain -1.0" in shell.refuses("serve", "--drain", "-1")
    monkeypatch.setenv("MMPREFIX_API_KEY", "two words")
    assert "MMPREFIX_API_KEY" in shell.refuses("serve")


def test_help_names_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    out = capsys.readouterr().out
    assert "MMPREFIX_API_KEY" in out
    assert "--max-wait-ms" in out
