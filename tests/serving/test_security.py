"""Key, origins, headers; addresses of clients; names of clients' files; the page of the endpoints."""

from __future__ import annotations

import http.server
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from mmprefix import InputError
from mmprefix.serving.app import make_app
from mmprefix.serving.calls import ServedModel
from mmprefix.serving.security import public_urls
from mmprefix.serving.security.access import key_from_environment
from mmprefix.serving.security.public_urls import fetch_public, is_public, public_address
from mmprefix.serving.service import ServeOptions
from tiny.service import Sample

KEY = "a-secret"


@pytest.fixture(scope="module")
def client(served: list[ServedModel]) -> Iterator[TestClient]:
    options = ServeOptions(key=KEY, allow_urls=True, origins=("https://good.example",))
    with TestClient(make_app(served, options), headers={"authorization": f"Bearer {KEY}"}) as one:
        yield one


# ------------------------------------------------------------------------------------------------ key and browsers


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", KEY, "Bearer \xe9"])
def test_without_the_key_nothing_is_done(value: str, client: TestClient, samples: list[Sample]) -> None:
    headers: Any = {"authorization": value.encode("latin-1")}
    for path in ("/v1/models", "/metrics", "/v1/none"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert client.post("/v1/caption", files={"f": samples[0].content}, headers=headers).status_code == 401
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert client.get(path, headers=headers).status_code == 200


def test_with_the_key(client: TestClient, samples: list[Sample]) -> None:
    answer = client.post("/v1/caption", files={"f": samples[0].content})
    assert answer.json()["results"][0]["texts"][0]["text"] == samples[0].text
    assert client.get("/v1/models", headers={"authorization": f"bearer {KEY}"}).status_code == 200


def test_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMPREFIX_API_KEY", raising=False)
    assert key_from_environment() is None
    monkeypatch.setenv("MMPREFIX_API_KEY", KEY)
    assert key_from_environment() == KEY
    for wrong in ("", "two words", "schlüssel", "line\n"):
        monkeypatch.setenv("MMPREFIX_API_KEY", wrong)
        with pytest.raises(InputError, match="MMPREFIX_API_KEY"):
            key_from_environment()


def test_pages_of_other_sites_are_refused(client: TestClient) -> None:
    assert client.get("/v1/models", headers={"origin": "https://evil.example"}).status_code == 403
    assert client.get("/v1/models", headers={"origin": "null"}).status_code == 403
    assert client.get("/v1/models", headers={"origin": "http://testserver"}).status_code == 200
    good = client.get("/v1/models", headers={"origin": "https://good.example"})
    assert good.headers["access-control-allow-origin"] == "https://good.example"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("rebound.example", 403),
        ("rebound.example:8000", 403),
        ("127.0.0.1.rebound.example", 403),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7", 200),
        ("localhost:8000", 200),
        (socket.gethostname(), 200),
    ],
)
def test_a_name_that_leads_here_is_not_ours(host: str, status: int, served: list[ServedModel]) -> None:
    """DNS rebinding: page and service have one name, and no key is asked for. Programs send no origin."""
    app = make_app(served, ServeOptions(origins=("https://named.example",)))
    with TestClient(app, base_url=f"http://{host}") as client:
        assert client.get("/v1/models", headers={"origin": f"http://{host}"}).status_code == status
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models", headers={"origin": "https://named.example"}).status_code == 200
        assert client.get("/v1/models", headers={"origin": "http://["}).status_code == 403


def test_headers_and_ids(client: TestClient) -> None:
    answer = client.get("/healthz", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for odd in ("a b", "x" * 65, '"}'):
        own = client.get("/healthz", headers={"x-request-id": odd}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", own)


def test_the_page_loads_nothing_and_names_every_endpoint(client: TestClient) -> None:
    page = client.get("/docs").text
    assert re.findall(r"<(?:script|link|img|iframe)|src=|url\(|@import", page) == []
    assert re.findall(r'href="([^"]*)"', page) == ["openapi.json"]
    description = client.get("/openapi.json").json()
    assert {"/v1/caption", "/v1/understand", "/v1/detect", "/v1/chat/completions", "/metrics"} <= set(
        description["paths"]
    )
    for path in description["paths"]:
        assert f" {path}</code>" in page
    content = description["paths"]["/v1/caption"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    assert "beams" in content["multipart/form-data"]["schema"]["properties"]


def test_measures(client: TestClient, samples: list[Sample]) -> None:
    client.post("/v1/caption", files={"f": samples[0].content})
    client.post("/v1/caption", files={"f": b"bad"})
    client.get("/v1/secret-looking-path")
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    requests = {tuple(sorted(each.labels.items())): each.value for each in families["mmprefix_requests"].samples}
    paths = {dict(labels)["path"] for labels in requests}
    assert "other" in paths
    assert not any("secret" in path for path in paths)
    for status in ("200", "400"):
        assert requests[("method", "POST"), ("path", "/v1/caption"), ("status", status)] >= 1
    assert {"mmprefix_batch_size", "mmprefix_queue_seconds", "mmprefix_request_seconds"} <= families.keys()
    assert families["mmprefix_ready"].samples[0].value == 1
    assert families["mmprefix_inputs_inside"].samples[0].value == 0
    assert families["process_resident_memory_bytes"].samples[0].value > 1e7


# ------------------------------------------------------------------------------------------------- files' names


@pytest.mark.parametrize(
    "name", ["../../x.png", "/etc/passwd", "C:\\x.png", "a\0b.png", "x" * 300, "http://x.org/a.png"]
)
def test_a_file_name_is_a_word_in_the_answer_alone(
    name: str, client: TestClient, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is opened for writing while two megabytes come, large enough that others put them on the disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    opened: list[Any] = []
    recording = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if recording and event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            opened.append(arguments[0])

    sys.addaudithook(watch)
    padded = samples[0].content + b"\0" * (2 << 20)  # readers of PNG stop at its end
    answer = client.post("/v1/caption", files=[("f", (name, padded)), ("f", (name, b"no"))])
    recording = False
    rows = answer.json()["results"]
    assert rows[0]["texts"][0]["text"] == samples[0].text
    assert "error" in rows[1]
    assert len(rows[0]["name"]) <= 200
    assert opened == []
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- addresses

PRIVATE = [
    "127.0.0.1", "127.8.9.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0",
    "fc00::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1", "fec0::1", "::127.0.0.1", "no address",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public(address: str) -> None:
    assert not is_public(address)
    for before in ([], ["93.184.215.14"]):
        with pytest.raises(InputError, match="is no public host"):
            public_address("any.example", 80, lambda host, port, before=before: [*before, address])


@pytest.mark.parametrize("address", ["93.184.215.14", "1.1.1.1", "2606:2800:21f::1", "::ffff:1.1.1.1"])
def test_a_public_address(address: str) -> None:
    assert is_public(address)
    assert public_address("any.example", 80, lambda host, port: [address]) == address


class Site(http.server.BaseHTTPRequestHandler):
    """Site that counts its visitors; /to/ADDRESS redirects."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
        else:
            self.send_response(200)
            self.send_header("Content-Length", "5")
        self.end_headers()
        if not self.path.startswith("/to/"):
            self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's name)
        """Print nothing."""


@pytest.fixture
def site() -> Iterator[tuple[int, list[str]]]:
    """Port and visited paths of a site on this machine."""
    seen: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Site,), {"seen": seen}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], seen
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "127.1", "0.0.0.0", "0"]
)
def test_this_machine_is_never_asked(host: str, site: tuple[int, list[str]], client: TestClient) -> None:
    port, seen = site
    answer = client.post("/v1/caption", json={"inputs": [f"http://{host}:{port}/a.png"]})
    assert answer.status_code == 400
    assert re.search("no public host|no such host", answer.json()["error"]["message"])
    assert seen == []


@pytest.mark.parametrize(
    "url",
    ["http://", "http://user:word@1.1.1.1/", "http://1.1.1.1:x/", "http://[::1", "http://a b/", "http:///a",
     "http://1.1.1.1/\r\nX: y", "https://\0/"],
)  # fmt: skip
def test_addresses_of_no_form(url: str, client: TestClient) -> None:
    answer = client.post("/v1/caption", json={"inputs": [url]})
    assert answer.status_code == 400


def test_files_and_other_schemes_are_no_addresses(client: TestClient) -> None:
    for url in ("file:///etc/passwd", "ftp://1.1.1.1/a", "gopher://1.1.1.1/", "/etc/passwd", "jar:http://x!/"):
        answer = client.post("/v1/caption", json={"inputs": [url]})
        assert answer.status_code == 400


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, site: tuple[int, list[str]]) -> list[tuple[str, int]]:
    """Connections to 93.184.215.14 lead to the site on this machine; all that are made are kept."""
    made: list[tuple[str, int]] = []
    connect = socket.create_connection

    def redirected(address: tuple[str, int], *rest: Any, **more: Any) -> socket.socket:
        made.append(address)
        return connect(("127.0.0.1", site[0]) if address[0] == "93.184.215.14" else address, *rest, **more)

    monkeypatch.setattr(public_urls.socket, "create_connection", redirected)
    return made


def test_a_public_host_is_asked_at_the_address_that_was_checked(pretended: list[tuple[str, int]]) -> None:
    """A name is resolved once: what it resolves to afterwards (DNS rebinding) is never asked for."""
    answers = iter([["93.184.215.14"], ["127.0.0.1"]])
    assert fetch_public("http://any.example/a", 20, lambda host, port: next(answers)) == b"hello"
    assert pretended == [("93.184.215.14", 80)]


@pytest.mark.parametrize(
    "target", ["http://inside.example/", "http://127.0.0.1/", "file:///etc/passwd", "ftp://inside.example/a"]
)
def test_a_redirect_leads_to_public_hosts_alone(
    target: str, pretended: list[tuple[str, int]], site: tuple[int, list[str]]
) -> None:
    def resolve(host: str, port: int) -> list[str]:
        return {"any.example": ["93.184.215.14"], "inside.example": ["10.0.0.7"]}.get(host, [host])

    with pytest.raises(InputError):
        fetch_public(f"http://any.example/to/{target}", 20, resolve)
    assert pretended == [("93.184.215.14", 80)]
    assert len(site[1]) == 1
    assert fetch_public("http://any.example/to/http://any.example/b", 20, resolve) == b"hello"


def test_proxies_of_the_environment_are_not_asked(
    monkeypatch: pytest.MonkeyPatch, pretended: list[tuple[str, int]]
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert fetch_public("http://any.example/a", 20, lambda host, port: ["93.184.215.14"]) == b"hello"
