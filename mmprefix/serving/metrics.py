"""Counts and times of the service in Prometheus' text form; labels are names of ours, never texts of clients."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServiceMetrics:
    """Measures of one service, in a registry of its own: several services may live in one process.

    ``waiting``, ``inputs`` and ``ready`` are called when the measures are read.
    """

    def __init__(self, waiting: Callable[[], int], inputs: Callable[[], int], ready: Callable[[], bool]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU time and open files of the process
        own = self.registry
        self.requests = Counter(
            "mmprefix_requests", "Requests that were answered.", ["path", "method", "status"], registry=own
        )
        self.seconds = Histogram(
            "mmprefix_request_seconds", "Seconds of a request, all included.", ["path"], buckets=_SECONDS, registry=own
        )
        self.batches = Histogram(
            "mmprefix_batch_size", "Inputs of a batch.", ["model", "task"], buckets=_SIZES, registry=own
        )
        self.queue_seconds = Histogram(
            "mmprefix_queue_seconds", "Seconds that the oldest input of a batch waited.", buckets=_SECONDS, registry=own
        )
        self.results = Counter("mmprefix_inputs", "Inputs by outcome: done, error.", ["model", "outcome"], registry=own)
        self.streams = Counter("mmprefix_streams", "Answers that were streamed.", ["model"], registry=own)
        for name, text, read in (
            ("mmprefix_queue_length", "Inputs that wait for a batch.", waiting),
            ("mmprefix_inputs_inside", "Inputs that are read, wait or are computed.", inputs),
            ("mmprefix_ready", "1 while the service takes requests.", lambda: float(ready())),
        ):
            Gauge(name, text, registry=own).set_function(read)

    def text(self) -> bytes:
        """All measures in Prometheus' text form."""
        return generate_latest(self.registry)
