"""Inputs that are addresses: refused unless allowed, downloaded within limits, named in every error."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import mmprefix
from mmprefix import InputError, Predictor
from mmprefix.inference.urls import download
from tiny.shell import Shell


class Pages(BaseHTTPRequestHandler):
    """Files of ``folder``, and pages that misbehave."""

    folder: Path

    def do_GET(self) -> None:
        """Answer by the name of the page."""
        name = self.path.lstrip("/")
        if name == "moved":
            return self._head(302, {"Location": "file:///etc/passwd"})
        if name == "gone":
            return self._head(404, {})
        if name == "announced":
            return self._head(200, {"Content-Length": str(10**12)})
        if name == "endless":
            self._head(200, {})
            return self._write(b"x" * 1000, 1000, 0.0)
        if name == "slow":
            self._head(200, {})
            return self._write(b"x", 100, 0.1)
        self._head(200, {})
        return self._write((self.folder / name).read_bytes(), 1, 0.0)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _write(self, data: bytes, times: int, pause: float) -> None:
        try:
            for _ in range(times):
                self.wfile.write(data)
                time.sleep(pause)
        except OSError:  # the reader has had enough
            return

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's name)
        """Print nothing."""


@pytest.fixture(scope="module")
def site(files: list[Path]) -> Iterator[str]:
    """Address of a server of the media files."""
    Pages.folder = files[0].parent
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_allowed_address_is_its_file(model: Predictor, files: list[Path], site: str) -> None:
    urls = [f"{site}/{file.name}" for file in files[:4]]
    assert model(urls, allow_urls=True) == model(files[:4])
    assert model(urls[0], allow_urls=True) == model(files[0])
    both = {"audio": f"{site}/{files[0].name}", "image": files[1]}
    assert model(both, allow_urls=True) == model({"audio": files[0], "image": files[1]})  # type: ignore[arg-type]
    mixed = list(model.stream([urls[0], f"{site}/gone", files[1]], allow_urls=True))
    assert isinstance(mixed[1], InputError)
    assert [row[0].text for row in mixed if not isinstance(row, InputError)] == model(files[:2])


def test_nothing_is_downloaded_unless_it_is_allowed(
    model: Predictor, saved: dict[str, Path], site: str, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for value in (f"{site}/a.wav", f"HTTPS{site[4:]}/a.wav", {"audio": f"{site}/a.wav"}, [files[0], f"{site}/a.wav"]):
        with pytest.raises(
            InputError, match=r"a\.wav: is an address, and nothing is downloaded unless allow_urls=True"
        ):
            model(value)
    shell = Shell(capsys)
    code, out, err = shell("caption", saved["both"], f"{site}/{files[0].name}", "--allow-urls", "--device", "cpu")
    assert (code, out) == (0, f"{site}/{files[0].name}: {model(files[0])}\n"), err


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("gone", r"/gone: could not be downloaded \(.*Not Found"),
        ("moved", r"/moved: could not be downloaded \("),
        ("announced", r"/announced: 1,000,000,000,000 bytes, the limit is 100,000; raise it by MMPREFIX_MAX_BYTES"),
        ("endless", r"/endless: 1\d\d,\d\d\d bytes, the limit is 100,000"),
        ("slow", r"/slow: took longer than 1 s; download it first"),
    ],
)
def test_a_download_that_fails_is_one_line(site: str, page: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPREFIX_MAX_BYTES", "100000")
    with pytest.raises(InputError, match=message) as error:
        download(f"{site}/{page}", seconds=1.0 if page == "slow" else 60.0)
    assert "\n" not in str(error.value)


def test_an_address_is_named_where_its_bytes_are_wrong(
    model: Predictor, saved: dict[str, Path], site: str, files: list[Path]
) -> None:
    sounds = mmprefix.load(saved["audio"], device="cpu")
    with pytest.raises(InputError, match=rf"{site}/{files[1].name}: is a picture, but this model reads a sound"):
        sounds(f"{site}/{files[1].name}", allow_urls=True)
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:1/a\.wav: could not be downloaded"):
        model("http://127.0.0.1:1/a.wav", allow_urls=True)
