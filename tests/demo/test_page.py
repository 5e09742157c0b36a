"""Headers of the page, and calls from pages of other names."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from mmprefix.demo.limits import UploadRoom
from mmprefix.demo.page import PageHeaders


def app() -> FastAPI:
    made = FastAPI()
    made.add_middleware(PageHeaders, origins=frozenset({"https://captions.example"}))

    @made.post("/call")
    def call() -> str:
        return "called"

    return made


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("rebound.example:7860", "http://rebound.example:7860", 403),
        ("127.0.0.1.rebound.example", "http://127.0.0.1.rebound.example", 403),
        ("rebound.example", None, 200),  # a program, or the address bar
        ("127.0.0.1:7860", "http://127.0.0.1:7860", 200),
        ("[::1]:7860", "http://[::1]:7860", 200),
        ("192.168.1.7:7860", "http://192.168.1.7:7860", 200),  # a phone in the same network
        ("localhost:7860", "https://some.notebook.example", 200),  # a proxy that names the page itself
        ("captions.example", "https://captions.example", 200),
    ],
)
def test_a_name_that_leads_here_is_not_the_page_s(host: str, origin: str | None, status: int) -> None:
    with TestClient(app(), base_url=f"http://{host}") as client:
        answer = client.post("/call", headers={} if origin is None else {"origin": origin})
    assert answer.status_code == status
    assert ("called" in answer.text) == (status == 200)


def test_the_browser_may_fetch_from_this_page_alone() -> None:
    with TestClient(app(), base_url="http://localhost") as client:
        headers = client.post("/call").headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["connect-src"] == "'self' data: blob:"
    assert policy["object-src"] == "'none'"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_files_of_all_visitors_are_bounded(tmp_path: Path) -> None:
    made, numbers = FastAPI(), itertools.count()
    made.add_middleware(PageHeaders, room=UploadRoom(tmp_path, 1000))

    @made.post("/gradio_api/upload")
    def upload() -> str:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        (folder / "a.bin").write_bytes(bytes(600))
        return "taken"

    with TestClient(made, base_url="http://localhost") as client:
        answers = [client.post("/gradio_api/upload") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 413]
        assert "all the room" in answers[-1].text
        (tmp_path / "0" / "a.bin").unlink()
        assert client.post("/gradio_api/upload").status_code == 200


def test_an_upload_that_is_over_is_done() -> None:
    with TestClient(app(), base_url="http://localhost") as client:
        answer = client.get("/gradio_api/upload_progress")
    assert (answer.status_code, answer.text) == (200, 'data: {"msg": "done"}\n\n')
