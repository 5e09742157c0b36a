"""Back-pressure: how many inputs and bytes may be inside the service at once, and how long a request may take.

What comes beyond is answered by 429, what takes longer by 504.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from mmprefix.serving.faults import RequestError


class Admission:
    """Counts of inputs and bytes inside: read, waiting or computed. ``most`` and ``most_bytes`` bound them."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most, self.most_bytes = most, most_bytes
        self.inputs, self.bytes = 0, 0
        self._lock = threading.Lock()

    @contextmanager
    def admit(self) -> Generator[Place, None, None]:
        """A place for a request with one input; raises RequestError 429 where there is none."""
        place = Place(self)
        try:
            place.add(inputs=1)
            yield place
        finally:
            place.leave()

    def take(self, inputs: int, size: int) -> None:
        """Count ``inputs`` and ``size`` bytes in, or raise RequestError 429."""
        with self._lock:
            if inputs > 0 and self.inputs + inputs > self.most:
                raise _too_many(f"{self.inputs} inputs are being answered, the limit is {self.most}")
            if size > 0 and self.bytes + size > self.most_bytes:
                raise _too_many(f"{self.bytes:,} bytes of inputs are being answered, the limit is {self.most_bytes:,}")
            self.inputs += inputs
            self.bytes += size


class Place:
    """Share of one request in an ``Admission``."""

    def __init__(self, admission: Admission) -> None:
        self._admission, self.inputs, self.bytes = admission, 0, 0

    def add(self, inputs: int = 0, size: int = 0) -> None:
        """Hold more, or raise RequestError 429."""
        self._admission.take(inputs, size)
        self.inputs += inputs
        self.bytes += size

    def leave(self) -> None:
        """Hold nothing any more."""
        self._admission.take(-self.inputs, -self.bytes)
        self.inputs = self.bytes = 0


@dataclass(frozen=True)
class TimeLimit:
    """Time of one request: ``seconds`` in all, from its first byte to the last of its answer."""

    seconds: float
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left, 0 when the time is over."""
        return max(0.0, self.begun + self.seconds - time.monotonic())

    @property
    def fault(self) -> RequestError:
        """Answer to a request whose time is over."""
        return RequestError(504, f"no answer within {self.seconds:g} s", code="timeout")

    @asynccontextmanager
    async def bound(self) -> AsyncGenerator[None, None]:
        """Raise RequestError 504 where the block is not done in the time that is left."""
        try:
            async with asyncio.timeout(self.left):
                yield
        except TimeoutError:
            raise self.fault from None


def _too_many(reason: str) -> RequestError:
    message = f"the service is full: {reason}; try again in a moment"
    return RequestError(429, message, code="queue_full", headers={"Retry-After": "1"})
