"""Bodies of requests: JSON or form-data, read within limits of bytes and time. Files stay in memory.

A client's file name is a word in its answer, nothing else.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from mmprefix.serving.admission import Place
from mmprefix.serving.faults import RequestError, fault_of_form
from mmprefix.serving.service import ServeOptions

Form = TypeVar("Form", bound=BaseModel)
MAX_FIELDS = 100
MAX_NAME = 200  # characters of a file name in an answer


@dataclass(frozen=True)
class Upload:
    """A file of a form-data request: the name that its client gives it, and its bytes."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Body:
    """Fields and files of a request."""

    text: bytes | None = None
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    files: list[Upload] = field(default_factory=list[Upload])

    def form(self, kind: type[Form]) -> Form:
        """The fields as ``kind``; raises RequestError 422."""
        try:
            return kind.model_validate(self.fields) if self.text is None else kind.model_validate_json(self.text)
        except ValidationError as error:
            raise fault_of_form(error) from None


async def read_body(request: Request, limits: ServeOptions) -> Body:
    """Body of ``request``, within the service's ``limits``. Raises RequestError 400, 408, 413, 415 or 429."""
    max_bytes, limit = limits.max_bytes, request.state.time
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise RequestError(415, "send application/json, or files as multipart/form-data", code="content_type")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > max_bytes:
        raise _too_large(max_bytes)
    chunks = _counted(request, request.state.place, max_bytes)
    try:
        async with asyncio.timeout(limit.left):
            if kind == "application/json":
                return Body(text=b"".join([chunk async for chunk in chunks]))
            return await _form_data(request, chunks, limits.max_files)
    except TimeoutError:
        message = f"the request took longer than {limit.seconds:g} s to arrive"
        raise RequestError(408, message, code="slow_upload") from None
    finally:
        await chunks.aclose()


async def _counted(request: Request, place: Place, most: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise _too_large(most)
        place.add(size=len(chunk))
        yield chunk


def _too_large(most: int) -> RequestError:
    return RequestError(413, f"the request has more than {most:,} bytes (--max-bytes)", code="too_large")


class _InMemory(MultiPartParser):
    """Starlette's parser with files that never go to a disk."""

    spool_max_size = 1 << 62

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        upload = self._current_part.file
        if upload is not None and isinstance(upload.file, SpooledTemporaryFile):
            upload.file.close()
            upload.file = io.BytesIO()


async def _form_data(request: Request, chunks: AsyncGenerator[bytes, None], max_files: int) -> Body:
    parser = _InMemory(request.headers, chunks, max_files=max_files, max_fields=MAX_FIELDS)
    try:
        data = await parser.parse()
    except MultiPartException as error:
        raise RequestError(400, f"form-data: {error.message}", code="bad_form") from None
    except (ValueError, LookupError) as error:  # of headers of parts
        raise RequestError(400, "form-data: cannot be read", code="bad_form") from error
    fields, files = dict[str, Any](), list[Upload]()
    for name, value in data.multi_items():
        if isinstance(value, UploadFile):
            files.append(Upload((value.filename or "")[:MAX_NAME], value.file.read()))
        elif name in ("history", "inputs", "answers"):
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise RequestError(422, f"{name}: occurs twice", code="bad_form", param=name)
        elif name == "schema" and value.lstrip().startswith("{"):
            fields[name] = _json(name, value)
        elif value:
            fields[name] = value
    return Body(fields=fields, files=files)


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError(422, f"{name}: no valid JSON", code="bad_form", param=name) from None
