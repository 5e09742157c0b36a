"""Front of the service, for every request: its id, key, origin and place; headers, measures, one log line."""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmprefix.serving.admission import TimeLimit
from mmprefix.serving.faults import CLIENT_GONE, fault_of
from mmprefix.serving.logs import log
from mmprefix.serving.security.access import HEADERS, OPEN_PATHS, require_key, require_origin
from mmprefix.serving.service import Service, stopping_fault

_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
PATHS = frozenset({*OPEN_PATHS, "/metrics", "/v1/models", "/v1/caption", "/v1/understand", "/v1/detect"})
CHAT = "/v1/chat/completions"
_METHODS = ("GET", "POST", "HEAD", "OPTIONS")


class Front:
    """Middleware around the endpoints. ``request.state`` has ``request_id``, ``time`` (a TimeLimit) and ``place``."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens inside."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, headers = time.perf_counter(), Headers(scope=scope)
        sent = headers.get("x-request-id", "")
        name = sent if _ID.fullmatch(sent) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=name, time=TimeLimit(self.service.options.timeout))
        answer = _Answer(send, name)
        try:
            with self._place(scope, headers):
                await self.app(scope, receive, answer)
        except Exception as error:
            await self._failed(error, answer, (scope, receive))
        finally:
            self._note(scope, answer.status, time.perf_counter() - begun, name)

    @contextlib.contextmanager
    def _place(self, scope: Scope, headers: Headers) -> Iterator[None]:
        """Refuse those who may not enter; hold a place for a request that brings inputs, until it is answered."""
        path = scope["path"]
        options = self.service.options
        require_origin(headers, options.origins, has_key=options.key is not None)
        if path not in OPEN_PATHS:
            require_key(headers, options.key)
        if scope["method"] != "POST":
            yield
            return
        if self.service.stopping.is_set():
            raise stopping_fault()
        with self.service.admission.admit() as place:
            scope["state"]["place"] = place
            yield

    async def _failed(self, error: Exception, answer: _Answer, channel: tuple[Scope, Receive]) -> None:
        if isinstance(error, ClientDisconnect):
            answer.status = CLIENT_GONE
            return
        fault = fault_of(error)
        if fault.status == 500:
            log.error("a request failed", exc_info=error, extra={"fields": {"request": answer.name}})
        if answer.started:
            return
        if fault.status == CLIENT_GONE:
            answer.status = CLIENT_GONE
            return
        await JSONResponse(fault.body, fault.status, fault.headers)(*channel, answer)

    def _note(self, scope: Scope, status: int, seconds: float, name: str) -> None:
        path = scope["path"] if scope["path"] in PATHS or scope["path"] == CHAT else "other"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        metrics = self.service.metrics
        metrics.requests.labels(path, method, str(status)).inc()
        metrics.seconds.labels(path).observe(seconds)
        fields: dict[str, Any] = {"request": name, "method": method, "path": path, "status": status}
        log.info("request", extra={"fields": {**fields, "ms": round(1000 * seconds, 1)}})


class _Answer:
    """``send`` that adds the headers of every answer, and remembers its status."""

    def __init__(self, send: Send, name: str) -> None:
        self._send, self.name = send, name
        self.status, self.started = CLIENT_GONE, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.started = message["status"], True
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.name
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)
