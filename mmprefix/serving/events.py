"""Server-sent events: their form on the wire, and the way of pieces from a model's thread to the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Executor
from typing import Any

from fastapi.responses import StreamingResponse

from mmprefix.serving.admission import TimeLimit
from mmprefix.serving.faults import fault_of
from mmprefix.serving.logs import log

MEDIA_TYPE = "text/event-stream"
HEADERS = {"X-Accel-Buffering": "no"}  # proxies such as nginx pass each event on at once
PING = ": still working\n\n"  # a comment, which keeps a silent connection open
_END = object()
_Piece = tuple[Any, BaseException | None]


def event(data: Any, name: str | None = None) -> str:
    """One event with ``data`` as JSON on one line; ``name`` is its type, "message" where there is none."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, allow_nan=False)}\n\n"


DONE = "data: [DONE]\n\n"


async def from_thread(
    executor: Executor, make: Callable[[], Iterable[Any]], limit: TimeLimit
) -> AsyncGenerator[Any, None]:
    """Items of ``make()``, which runs in a thread of ``executor``; its exceptions are raised here.

    Closing it ends the work after the piece it is at. Raises RequestError 504 when the time of ``limit`` is over.
    """
    loop, queue, stop = asyncio.get_running_loop(), asyncio.Queue[_Piece](), threading.Event()

    def put(*piece: Any) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, piece)

    future = executor.submit(_produce, make, put, stop)
    try:
        while True:  # each item may be awaited by another task, so that asyncio.timeout cannot enclose the loop
            try:
                item, error = await asyncio.wait_for(queue.get(), limit.left)
            except TimeoutError:
                raise limit.fault from None
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        future.cancel()


def _produce(make: Callable[[], Iterable[Any]], put: Callable[..., None], stop: threading.Event) -> None:
    """Put the items of ``make()`` with None, then the end with what ended them."""
    try:
        for item in make() if not stop.is_set() else ():
            put(item, None)
            if stop.is_set():
                return
        put(_END, None)
    except BaseException as error:
        put(_END, error.with_traceback(None))


async def with_pings(events: AsyncGenerator[str, None], seconds: float = 15.0) -> AsyncGenerator[str, None]:
    """``events``, with a comment wherever none has come for ``seconds``."""
    waiting = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=seconds)
            if not done:
                yield PING
                continue
            text = waiting.result()
            if text is None:
                return
            yield text
            waiting = asyncio.ensure_future(anext(events, None))
    finally:
        if not waiting.done():
            waiting.cancel()
            await asyncio.wait({waiting})
        await events.aclose()


async def event_response(events: AsyncGenerator[str, None]) -> StreamingResponse:
    """Response of ``events``, begun when the first is there: what fails before has a status of its own."""
    first = await anext(events)
    return StreamingResponse(with_pings(_after(first, events)), media_type=MEDIA_TYPE, headers=HEADERS)


async def _after(first: str, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """``first`` and the others; an error among them is an event, for the status is sent already."""
    try:
        yield first
        async for text in events:
            yield text
    except Exception as error:
        fault = fault_of(error)
        if fault.status == 500:
            log.exception("a streamed answer failed", exc_info=error)
        yield event(fault.body, "error")
        yield DONE
    finally:
        await events.aclose()
