"""A running service: models, the batcher, the threads that stream, admission and measures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fastapi import Request

from mmprefix.errors import InputError
from mmprefix.serving.admission import Admission, TimeLimit
from mmprefix.serving.batcher import Batcher, StoppedError
from mmprefix.serving.calls import InputToRead, ServedModel, TaskCall
from mmprefix.serving.faults import CLIENT_GONE, RequestError
from mmprefix.serving.metrics import ServiceMetrics

Result = TypeVar("Result")


@dataclass(frozen=True)
class ServeOptions:
    """Options of a service; times are in seconds.

    Args:
        max_batch: most inputs of one computation; 1 switches batching off.
        max_wait: most seconds that an input waits for others while nothing is computed.
        queue: most inputs inside the service (read, waiting, computed); those beyond are answered by 429.
        max_bytes: of one request; ``queue_bytes`` of all that are inside.
        max_files: most inputs of one request.
        max_beams: most beams, and texts an input; ``max_tokens`` of a text.
        timeout: most seconds from the first byte of a request to the last of its answer.
        streams: threads that write streamed answers, beside the one that computes batches.
        allow_urls: inputs may be addresses of public hosts, which are fetched.
        origins: sites of other hosts whose pages may use the service from a browser.
        chat_text: use of a chat message's text: "prompt", "ignore", or "auto": prompt of chat decoders.
        key: what requests must bear (``Authorization: Bearer KEY``).
    """

    max_batch: int = 32
    max_wait: float = 0.005
    queue: int = 256
    max_bytes: int = 32 << 20
    queue_bytes: int = 512 << 20
    max_files: int = 16
    max_beams: int = 16
    max_tokens: int = 256
    timeout: float = 60.0
    streams: int = 2
    allow_urls: bool = False
    origins: tuple[str, ...] = ()
    chat_text: Literal["auto", "prompt", "ignore"] = "auto"
    key: str | None = None

    def __post_init__(self) -> None:
        for name in (
            "max_batch",
            "queue",
            "max_bytes",
            "queue_bytes",
            "max_files",
            "max_beams",
            "max_tokens",
            "streams",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name.replace('_', '-')} {getattr(self, name)}: give a number from 1 on")
        if not 0 <= self.max_wait <= 10:
            raise InputError(f"max-wait {self.max_wait}: give seconds from 0 to 10")
        if not 0 < self.timeout < float("inf"):
            raise InputError(f"timeout {self.timeout}: give seconds above 0")


class Service:
    """Everything that requests share. ``stopping`` is set when no more of them are taken."""

    def __init__(self, models: Sequence[ServedModel], options: ServeOptions) -> None:
        names = [model.name for model in models]
        if not names or len(set(names)) != len(names):
            raise InputError(f"models {', '.join(names) or '(none)'}: give one or more, each by a name of its own")
        self.models, self.options = {model.name: model for model in models}, options
        self.stopping = threading.Event()
        self.admission = Admission(options.queue, options.queue_bytes)
        self.batcher = Batcher[TaskCall, InputToRead](
            self._compute, max_batch=options.max_batch, max_wait=options.max_wait, observe=self._observe
        )
        self.readers = ThreadPoolExecutor(8, thread_name_prefix="mmprefix-read")
        self.fetchers = ThreadPoolExecutor(16, thread_name_prefix="mmprefix-fetch")  # slow hosts do not hold up files
        self.writers = ThreadPoolExecutor(options.streams, thread_name_prefix="mmprefix-stream")
        self.metrics = ServiceMetrics(lambda: len(self.batcher), lambda: self.admission.inputs, lambda: self.ready)

    @property
    def ready(self) -> bool:
        """True while requests are taken and computed."""
        return not self.stopping.is_set() and self.batcher.alive

    def model(self, name: str | None) -> ServedModel:
        """The model called ``name``, by default the first; raises RequestError 404."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            message = f"no model {name[:200]!r}; there are {', '.join(self.models)}"
            raise RequestError(404, message, code="model_not_found", param="model")
        return self.models[name]

    def submit(self, call: TaskCall, row: InputToRead) -> Future[Any]:
        """Future of the result of one input; raises RequestError 503 while the service stops."""
        try:
            return self.batcher.submit(call, row)
        except StoppedError:
            raise stopping_fault() from None

    async def read(self, function: Callable[..., Result], *arguments: Any, fetches: bool = False) -> Result:
        """Result of ``function(*arguments)``, which reads inputs, in a thread; ``fetches``: from addresses too."""
        executor = self.fetchers if fetches else self.readers
        return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)

    async def answers(self, request: Request, futures: Sequence[Future[Any]]) -> list[Any]:
        """Result, or exception, of each of ``futures``.

        Those that are not computed yet are given up when the client goes away, and when the request's time is over:
        RequestError 499 and 504.
        """
        limit: TimeLimit = request.state.time
        gone = asyncio.ensure_future(_gone(request))
        results = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        try:
            await asyncio.wait({gone, results}, timeout=limit.left, return_when=asyncio.FIRST_COMPLETED)
            if results.done():
                return results.result()
            if gone.done():
                raise RequestError(CLIENT_GONE, "the client went away")
            raise limit.fault
        finally:
            for waiting in (gone, results):
                waiting.cancel()
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Compute what waits, then end the threads."""
        self.stopping.set()
        self.batcher.close()
        for threads in (self.readers, self.fetchers, self.writers):
            threads.shutdown(wait=True, cancel_futures=True)

    def _compute(self, call: TaskCall, rows: Sequence[InputToRead]) -> Iterator[Any]:
        for result in call.run(self.models[call.model].predictor, rows, self.options.max_batch):
            outcome = "error" if isinstance(result, InputError) else "done"
            self.metrics.results.labels(call.model, outcome).inc()
            yield result

    def _observe(self, call: TaskCall, size: int, seconds: float) -> None:
        self.metrics.batches.labels(call.model, call.task).observe(size)
        self.metrics.queue_seconds.observe(seconds)


def stopping_fault() -> RequestError:
    """Answer to requests that come while the service stops."""
    headers = {"Retry-After": "1", "Connection": "close"}
    return RequestError(503, "the service is stopping", code="stopping", headers=headers)


async def _gone(request: Request) -> None:
    """Return when the client has closed its connection; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
