"""FastAPI application of a service: endpoints of the tasks, of OpenAI's form, and of those who run it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from mmprefix.errors import InputError
from mmprefix.serving.api import chat, tasks
from mmprefix.serving.api.page import page
from mmprefix.serving.calls import ServedModel
from mmprefix.serving.faults import RequestError, error_body, fault_of
from mmprefix.serving.front import Front
from mmprefix.serving.service import ServeOptions, Service
from mmprefix.version import __version__


def make_app(models: Sequence[ServedModel], options: ServeOptions | None = None) -> FastAPI:
    """Application that serves ``models``, the first by default; its ``state.service`` is what requests share.

    Raises InputError for no model, and for two of one name.
    """
    service = Service(models, options or ServeOptions())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="mmprefix", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Captions of pictures and sounds, and the meaning of commands.",
    )  # fmt: skip
    app.state.service = service
    app.include_router(tasks.routes(service))
    app.include_router(chat.routes(service))
    _add_plain(app, service)
    for kind in (RequestError, InputError):
        app.add_exception_handler(kind, _answer_fault)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_middleware(Front, service=service)
    if service.options.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=service.options.origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return app


def _add_plain(app: FastAPI, service: Service) -> None:
    """Endpoints for those who run the service."""
    started = int(time.time())

    @app.get("/healthz", tags=["operation"], summary="200 while the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", tags=["operation"], summary="200 while requests are taken, 503 while the service stops")
    async def readyz() -> Response:
        ready = service.ready
        return JSONResponse({"status": "ready" if ready else "stopping"}, 200 if ready else 503)

    @app.get("/metrics", tags=["operation"], summary="Measures in Prometheus' text form")
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(page(app.openapi()))

    @app.get("/v1/models", tags=["models"], summary="Models that are served")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(each, started) for each in service.models.values()]}

    @app.get("/v1/models/{name}", tags=["models"], summary="One model")
    async def model(name: str) -> dict[str, Any]:
        return _model(service.model(name), started)


def _model(model: ServedModel, created: int) -> dict[str, Any]:
    reads, does = model.predictor.kinds, model.tasks
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "mmprefix",
        "reads": reads,
        "tasks": does,
    }


async def _answer_fault(request: Request, error: Exception) -> Response:
    fault = fault_of(error)
    if fault.status == 499:
        raise fault
    return JSONResponse(fault.body, fault.status, fault.headers)


async def _answer_http(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in OpenAI's form."""
    if not isinstance(error, HTTPException):  # Starlette's type of a handler is wider than what this one is given
        raise error
    message = {404: "no such path; see /docs", 405: "this path takes another method; see /docs"}
    text = message.get(error.status_code, str(error.detail))
    return JSONResponse(error_body(error.status_code, text), error.status_code, error.headers)
