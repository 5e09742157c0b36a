"""Real server on the loopback interface, in a thread of the test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from mmprefix.serving.calls import ServedModel
from mmprefix.serving.server import GracefulServer, make_server
from mmprefix.serving.service import ServeOptions


@dataclass(frozen=True)
class Sample:
    """A file in memory, and the caption that the model writes for it alone."""

    name: str
    content: bytes
    text: str


@dataclass(frozen=True)
class Running:
    """A server that answers at ``url``."""

    url: str
    server: GracefulServer

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)


@contextmanager
def running(models: list[ServedModel], options: ServeOptions | None = None) -> Generator[Running, None, None]:
    """Server of ``models`` in a thread; at the end it is stopped as a signal does."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = make_server(models, options or ServeOptions())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", server)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
