"""/v1/caption, /v1/understand, /v1/detect: files in, a result or an error for each of them out, in their order."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from mmprefix.errors import InputError
from mmprefix.inference.inputs import urls_in
from mmprefix.serving.admission import Place, TimeLimit
from mmprefix.serving.api.forms import CaptionForm, DecodingForm, DetectForm, TaskForm, UnderstandForm
from mmprefix.serving.body import Body, read_body
from mmprefix.serving.calls import InputToRead, ServedModel, Task, TaskCall, beside_of, schema_of, texts_of
from mmprefix.serving.events import DONE, event, event_response, from_thread
from mmprefix.serving.faults import RequestError, fault_of
from mmprefix.serving.inputs import InputReader, checked
from mmprefix.serving.service import Service
from mmprefix.serving.writing import can_stream, pieces

MAX_SCHEMA = 100_000  # characters of a schema's JSON


@dataclass(frozen=True)
class ReadableInput:
    """One input of a request that is read and checked: its name, and the call and row that compute its result."""

    name: str
    call: TaskCall
    row: InputToRead


@dataclass(frozen=True)
class UnreadableInput:
    """One input of a request that cannot be read: its name, and why."""

    name: str
    fault: Exception


RequestInput = ReadableInput | UnreadableInput


def routes(service: Service) -> APIRouter:
    """Endpoints of the three tasks."""
    router = APIRouter(prefix="/v1", tags=["tasks"])

    @router.post("/caption", openapi_extra=_body_of(CaptionForm), summary="Texts of pictures, sounds and other inputs")
    async def caption(request: Request) -> Response:
        return await answer(service, request, CaptionForm)

    @router.post("/understand", openapi_extra=_body_of(UnderstandForm), summary="Intent and slots of commands")
    async def understand(request: Request) -> Response:
        return await answer(service, request, UnderstandForm)

    @router.post("/detect", openapi_extra=_body_of(DetectForm), summary="Log odds of two answers")
    async def detect(request: Request) -> Response:
        return await answer(service, request, DetectForm)

    return router


def _body_of(form: type[TaskForm]) -> dict[str, Any]:
    """Request body of ``form`` in OpenAPI's terms."""
    schema = form.model_json_schema(by_alias=True)
    fields: dict[str, Any] = {name: value for name, value in schema["properties"].items() if name != "inputs"}
    file = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "files"}
    as_form = {"type": "object", "properties": {"file": file, **fields}}
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": as_form}}
    return {"requestBody": {"required": True, "content": content}}


async def answer(service: Service, request: Request, kind: type[TaskForm]) -> Response:
    """Response to a request with the fields of ``kind``."""
    body = await read_body(request, service.options)
    form = body.form(kind)
    model = service.model(form.model)
    async with request.state.time.bound():
        items = await _items(service, form, body, request.state.place)
    if len(items) == 1 and isinstance(items[0], UnreadableInput):
        raise items[0].fault
    if form.stream:
        service.metrics.streams.labels(model.name).inc()
        return await event_response(_events(service, request, form, items))
    results = await _results(service, request, items)
    if len(items) == 1 and isinstance(results[0], BaseException):
        raise results[0]
    pairs = zip(items, results, strict=True)
    rows = [result_row(form, number, item, result) for number, (item, result) in enumerate(pairs)]
    return JSONResponse({"id": request.state.request_id, "object": task_of(form), "model": model.name, "results": rows})


def task_of(form: TaskForm) -> Task:
    """Name of the task that a form is for."""
    return "caption" if isinstance(form, CaptionForm) else "detect" if isinstance(form, DetectForm) else "understand"


async def _results(service: Service, request: Request, items: Sequence[RequestInput]) -> list[Any]:
    """Result or exception of each item."""
    futures = [service.submit(item.call, item.row) for item in items if isinstance(item, ReadableInput)]
    results = iter(await service.answers(request, futures) if futures else [])
    return [next(results) if isinstance(item, ReadableInput) else item.fault for item in items]


def result_row(form: TaskForm, number: int, item: RequestInput, result: Any) -> dict[str, Any]:
    """Plain data of one result: texts, an answer or a score; an error in its place."""
    row: dict[str, Any] = {"index": number, **({"name": item.name} if item.name else {})}
    if isinstance(result, BaseException):
        return {**row, **fault_of(result).body}
    if isinstance(form, CaptionForm):
        return {**row, "texts": texts_of(result)}
    if isinstance(form, DetectForm):
        return {**row, "score": result if math.isfinite(result) else None}
    return {**row, **result}


async def _items(service: Service, form: TaskForm, body: Body, place: Place) -> list[RequestInput]:
    """Inputs of a request, read and checked in threads; one that cannot be read is its own fault alone."""
    options, model = service.options, service.model(form.model)
    names = [upload.name for upload in body.files] + [""] * len(form.inputs)
    values: list[Any] = [upload.content for upload in body.files] + list(form.inputs)
    if not values and form.context is not None:
        names, values = [""], [{}]
    if not values:
        raise RequestError(400, "no input; send files as form-data, or inputs as JSON", code="no_input", param="inputs")
    if len(values) > options.max_files:
        raise RequestError(
            413, f"{len(values)} inputs, the limit is {options.max_files}", code="too_many", param="inputs"
        )
    place.add(inputs=len(values) - 1)
    call = call_of(service, form, model)
    reader = InputReader(model, options.allow_urls, min(options.timeout, 20.0))

    async def item(name: str, value: Any) -> RequestInput:
        try:
            return await service.read(_read, reader, (call, form), value, name, fetches=bool(urls_in(value)))
        except (InputError, RequestError) as error:
            return UnreadableInput(name, error.with_traceback(None))

    return [await item(name, value) for name, value in zip(names, values, strict=True)]


def _read(reader: InputReader, asked: tuple[TaskCall, TaskForm], value: Any, name: str) -> ReadableInput:
    """One input, read from base64 or an address where it is not yet in memory."""
    call, form = asked
    content = value if isinstance(value, bytes) or value == {} else reader.read(value)
    return checked_input(reader.model, call, row_of(form, content), name)


def checked_input(model: ServedModel, call: TaskCall, row: InputToRead, name: str = "") -> ReadableInput:
    """``row`` checked for ``model``, with the call that rows like it share. Raises InputError."""
    empty = isinstance(row.value, dict) and not row.value
    sources, shape = (row.value, ()) if empty else checked(model, row.value)
    return ReadableInput(name, replace(call, shape=shape, beside=beside_of(row)), replace(row, value=sources))


def row_of(form: TaskForm, value: Any) -> InputToRead:
    """An input with the texts of its request."""
    prompt = form.prompt if isinstance(form, CaptionForm) else None
    history = None if form.history is None else tuple(form.history)
    return InputToRead(value, prompt, form.context, form.user, history)


def call_of(service: Service, form: TaskForm, model: ServedModel) -> TaskCall:
    """The call that ``form`` asks for. Raises InputError, RequestError for options that the service does not allow."""
    options: dict[str, Any] = {}
    if isinstance(form, CaptionForm):
        options = decoding_options(service, form, form.beams)
    elif isinstance(form, UnderstandForm):
        if form.schema_ is not None:
            options["schema"] = json.dumps(form.schema_, sort_keys=True)
            if len(options["schema"]) > MAX_SCHEMA:  # each intent and value is scored, and schemas are kept
                message = f"schema: {len(options['schema']):,} characters, the limit is {MAX_SCHEMA:,}"
                raise RequestError(413, message, code="too_large", param="schema")
            schema_of(options["schema"])
        options |= {} if form.framing is None else {"framing": form.framing}
    elif isinstance(form, DetectForm) and form.answers is not None:
        options["answers"] = form.answers
    return TaskCall(model.name, task_of(form), tuple(sorted(options.items())))


def decoding_options(service: Service, form: DecodingForm, beams: int | None) -> dict[str, Any]:
    """Keyword arguments of a Predictor's call that writes; RequestError 400 for more than the service allows."""
    limits = service.options
    for name, value, most in (
        ("n", form.n, limits.max_beams),
        ("beams", beams, limits.max_beams),
        ("max_new_tokens", form.max_new_tokens, limits.max_tokens),
        ("min_new_tokens", form.min_new_tokens, limits.max_tokens),
    ):
        if value is not None and value > most:
            raise RequestError(400, f"{name} {value}: the limit is {most}", code="too_many", param=name)
    names = set(DecodingForm.model_fields) - {"n"}
    options = {name: value for name in names if (value := getattr(form, name)) is not None}
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return {"num_return": form.n, **options, **({} if beams is None else {"num_beams": beams})}


# ------------------------------------------------------------------------------------------------------ streaming


async def _events(
    service: Service, request: Request, form: TaskForm, items: Sequence[RequestInput]
) -> AsyncGenerator[str, None]:
    """Events: pieces of the text of a single input as it is written, a result for each input, then [DONE]."""
    model, limit, first = service.model(form.model), request.state.time, items[0]
    if len(items) == 1 and isinstance(first, ReadableInput) and can_stream(model, first.call):
        text = ""
        written = from_thread(service.writers, lambda: pieces(model, first.call, first.row), limit)
        async for piece in written:
            text += piece
            yield event({"index": 0, "text": piece}, "piece")
        yield event({"index": 0, "texts": [{"text": text}]}, "result")
    else:
        async for number, result in _as_they_come(service, items, limit):
            yield event(result_row(form, number, items[number], result), "result")
    yield DONE


async def _as_they_come(
    service: Service, items: Sequence[RequestInput], limit: TimeLimit
) -> AsyncGenerator[tuple[int, Any], None]:
    """Number and result, or exception, of each item, the first done first; 504 for those that take too long."""
    futures, waiting = list[Future[Any]](), dict[asyncio.Future[Any], int]()
    try:
        for number, item in enumerate(items):
            if isinstance(item, ReadableInput):
                futures.append(service.submit(item.call, item.row))
                waiting[asyncio.wrap_future(futures[-1])] = number
            else:
                yield number, item.fault
        while waiting:
            done, _ = await asyncio.wait(waiting, timeout=limit.left, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                yield waiting.pop(each), each.exception() or each.result()
            if not done:
                break
        for number in waiting.values():
            yield number, limit.fault
    finally:
        for future in futures:
            future.cancel()
