"""Memory of a service: no object of a request is left when it is answered; run by test_memory.py in its own process."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from itertools import pairwise

import httpx
import pytest

from mmprefix.serving.calls import ServedModel
from tiny.service import Running, Sample, running

ROUNDS, BLOCKS = 6, 4


@pytest.fixture(scope="module")
def server(served: list[ServedModel]) -> Iterator[Running]:
    with running(served) as one:
        yield one


def ask(client: httpx.Client, samples: list[Sample]) -> None:
    """A good request, a streamed one, and bad ones of several kinds."""
    picture = samples[0].content
    options = {"max_new_tokens": 2}
    assert client.post("/v1/caption", files={"file": picture}, data=options).status_code == 200
    assert client.post("/v1/caption", files={"file": picture}, data={**options, "stream": "true"}).status_code == 200
    assert client.post("/v1/caption", files={"file": b"no file"}).status_code == 400
    assert client.post("/v1/caption", files={"file": picture[:100]}).status_code == 400
    assert client.post("/v1/caption", content=b"{", headers={"Content-Type": "application/json"}).status_code == 422
    assert client.post("/v1/none", json={}).status_code == 404


def objects() -> int:
    """Objects that the collector knows after a full collection."""
    gc.collect()
    return len(gc.get_objects())


def test_requests_leave_no_objects_behind(server: Running, samples: list[Sample]) -> None:
    with server.client() as client:
        for _ in range(3):  # caches and thread pools fill
            ask(client, samples)
        counts = [objects()]
        for _ in range(BLOCKS):
            for _ in range(ROUNDS):
                ask(client, samples)
            counts.append(objects())
    grown = [after - before for before, after in pairwise(counts)]
    assert min(grown) < 6 * ROUNDS, grown  # fewer than one a request; what leaks does so in every block
