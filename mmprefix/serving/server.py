"""The process of a service: uvicorn on a bound socket, and a stop that answers what was begun."""

from __future__ import annotations

import math
import signal
import socket
import time
from collections.abc import Sequence
from types import FrameType

import uvicorn

from mmprefix.serving.app import make_app
from mmprefix.serving.calls import ServedModel
from mmprefix.serving.logs import log
from mmprefix.serving.service import ServeOptions, Service

KEEP_ALIVE = 75  # seconds that an idle connection stays open: longer than the 60 s of common load balancers


class GracefulServer(uvicorn.Server):
    """Server that a signal ends in two steps: /readyz is 503 for ``drain`` seconds, then the port is closed.

    What was begun is answered before the process ends; a second Ctrl-C ends it at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service, drain: float = 0.0) -> None:
        super().__init__(config)
        self.service, self.drain = service, drain
        self._end = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal; the loop acts on it."""
        if self._end == math.inf:
            self.service.stopping.set()
            self._captured_signals.append(sig)
            self._end = time.monotonic() + self.drain
        elif sig == signal.SIGINT:
            self.force_exit = self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """True when the port is to be closed; called ten times a second."""
        self.should_exit = self.should_exit or time.monotonic() >= self._end
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say where."""
        await super().startup(sockets)
        for listening in sockets or []:
            host, port = listening.getsockname()[:2]
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            log.info("serving", extra={"fields": {"address": address, "models": list(self.service.models)}})


def make_server(models: Sequence[ServedModel], options: ServeOptions, drain: float = 0.0) -> GracefulServer:
    """Server of ``models`` that is not running yet: ``run(sockets=[...])`` serves."""
    app = make_app(models, options)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(options.timeout) + 5,
        backlog=1024,
    )
    return GracefulServer(config, app.state.service, drain)


def serve(
    models: Sequence[ServedModel], options: ServeOptions, listening: socket.socket, *, drain: float = 0.0
) -> None:
    """Serve on the bound socket ``listening`` until a signal, which goes on to the caller's handler."""
    make_server(models, options, drain).run(sockets=[listening])
