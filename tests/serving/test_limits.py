"""Bounds of the service: sizes, numbers, time and back-pressure; bad requests of every kind, and never a 500."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmprefix import InputError, Predictor
from mmprefix.serving.admission import Admission
from mmprefix.serving.api import tasks
from mmprefix.serving.app import make_app
from mmprefix.serving.calls import ServedModel
from mmprefix.serving.faults import RequestError
from mmprefix.serving.inputs import checked
from mmprefix.serving.service import ServeOptions
from tiny.service import Sample, running

SMALL = ServeOptions(max_bytes=200_000, max_files=3, max_beams=4, max_tokens=20, queue=8)


@pytest.fixture(scope="module")
def client(served: list[ServedModel]) -> Iterator[TestClient]:
    with TestClient(make_app(served, SMALL), raise_server_exceptions=True) as one:
        yield one


def refused(answer: Any, status: int, words: str) -> None:
    """The answer is an error of OpenAI's form with ``words`` in its sentence."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert words in error["message"]


@pytest.mark.parametrize("path", ["/v1/caption", "/v1/understand", "/v1/detect", "/v1/chat/completions"])
def test_requests_of_no_form(path: str, client: TestClient) -> None:
    refused(client.post(path, content=b"x", headers={"content-type": "text/plain"}), 415, "multipart/form-data")
    refused(client.post(path), 415, "application/json")
    refused(client.post(path, content=b"{", headers={"content-type": "application/json"}), 422, "Invalid JSON")
    refused(client.post(path, json=[1]), 422, "body")
    refused(client.post(path, content=b"x", headers={"content-type": "multipart/form-data"}), 400, "boundary")
    broken = {"content-type": "multipart/form-data; boundary=b"}
    refused(client.post(path, content=b"--b\r\nno headers", headers=broken), 400, "form-data")
    refused(client.get(path), 405, "another method")


def test_unknown_paths(client: TestClient) -> None:
    refused(client.get("/v1/none"), 404, "see /docs")
    refused(client.get("/../../etc/passwd"), 404, "see /docs")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "no input"),
        ({"inputs": []}, 400, "no input"),
        ({"inputs": ["?"]}, 400, "neither base64"),
        ({"inputs": [""]}, 400, "empty"),
        ({"inputs": ["/etc/passwd"]}, 400, "can"),  # base64 of seven bytes, and no file
        ({"inputs": ["data:image/png,abc"]}, 400, "in base64"),
        ({"inputs": [{"depth": "aaaa"}]}, 400, "this model reads image, audio"),
        ({"inputs": [{}]}, 400, "this model reads"),
        ({"inputs": [{"image": [1.0]}]}, 400, "give it in base64"),
        ({"inputs": ["aaaa"] * 4}, 413, "the limit is 3"),
        ({"inputs": ["aaaa"], "beams": 5}, 400, "beams 5: the limit is 4"),
        ({"inputs": ["aaaa"], "beams": 0}, 422, "beams"),
        ({"inputs": ["aaaa"], "n": "many"}, 422, "n: "),
        ({"inputs": ["aaaa"], "no_such": 1}, 422, "no_such: Extra"),
        ({"inputs": ["aaaa"], "model": "other"}, 404, "no model"),
        ({"inputs": ["aaaa"], "temperature": 1e400}, 422, "temperature"),
        ({"inputs": ["aaaa"] * 2, "stream": "perhaps"}, 422, "stream"),
    ],
)
def test_bad_json(body: dict[str, Any], status: int, words: str, client: TestClient) -> None:
    answer = client.post("/v1/caption", content=json.dumps(body), headers={"content-type": "application/json"})
    refused(answer, status, words)


def test_options_that_do_not_fit_the_model_or_one_another(client: TestClient, samples: list[Sample]) -> None:
    data = base64.b64encode(samples[0].content).decode()
    for options, words in (
        ({"user": "ann"}, "trained without users"),
        ({"context": "a text"}, "trained without one"),
        ({"history": ["a"]}, "trained without users"),
        ({"beams": 2, "seed": 3}, "sample=True draws texts without beams"),
        ({"min_new_tokens": 20, "max_new_tokens": 3}, "min_new_tokens"),
        ({"n": 3, "beams": 2}, "raise num_beams"),
    ):
        refused(client.post("/v1/caption", json={"inputs": [data], **options}), 400, words)


def test_bytes(client: TestClient, samples: list[Sample]) -> None:
    large = b"\0" * 200_001
    refused(client.post("/v1/caption", files={"f": large}), 413, "200,000 bytes")
    many = iter([b"--b\r\n"] + [b"\0" * 50_000] * 5)  # of no announced length
    headers = {"content-type": "multipart/form-data; boundary=b"}
    refused(client.post("/v1/caption", content=many, headers=headers), 413, "200,000 bytes")
    refused(client.post("/v1/caption", files={"f": b""}), 400, "empty")
    assert client.post("/v1/caption", files={"f": samples[0].content}).status_code == 200


def test_pixels_and_seconds(client: TestClient, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPREFIX_MAX_PIXELS", "1000")
    monkeypatch.setenv("MMPREFIX_MAX_SECONDS", "0.5")
    refused(client.post("/v1/caption", files={"f": samples[0].content}), 400, "pixels")
    refused(client.post("/v1/caption", files={"f": samples[6].content}), 400, "seconds")


def test_a_full_service_says_so_and_takes_requests_again(served: list[ServedModel], samples: list[Sample]) -> None:
    """While the thread that computes is held up, a third input has no place; both others are answered then."""
    go, entered = threading.Event(), threading.Event()

    class Held(Predictor):
        def stream(self, files: Any, **options: Any) -> Any:
            entered.set()
            assert go.wait(30)
            return super().stream(files, **options)

    world = served[0].predictor
    held = Held(world.model, world.settings)
    with running([ServedModel("held", held)], ServeOptions(queue=2, max_wait=0)) as server, server.client() as client:
        answers: list[httpx.Response] = []

        def ask(number: int) -> None:
            answers.append(client.post("/v1/caption", files={"f": samples[number].content}))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        assert entered.wait(30)
        while server.server.service.admission.inputs < 2:
            time.sleep(0.01)
        full = client.post("/v1/caption", files={"f": samples[2].content})
        refused(full, 429, "the service is full")
        assert full.headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == 200
        go.set()
        for thread in threads:
            thread.join(60)
        texts = {answer.json()["results"][0]["texts"][0]["text"] for answer in answers}
        assert texts == {samples[0].text, samples[1].text}
        assert client.post("/v1/caption", files={"f": samples[2].content}).status_code == 200
        several = [("f", samples[n].content) for n in range(3)]
        refused(client.post("/v1/caption", files=several), 429, "the limit is 2")


def test_bytes_inside_are_bounded() -> None:
    admission = Admission(most=4, most_bytes=100)
    with admission.admit() as first, admission.admit() as second:
        first.add(size=60)
        with pytest.raises(RequestError, match="60 bytes of inputs are being answered, the limit is 100"):
            second.add(size=41)
        second.add(size=40)
    assert (admission.inputs, admission.bytes) == (0, 0)


def test_a_client_that_goes_away_is_not_computed(served: list[ServedModel], samples: list[Sample]) -> None:
    go, entered, computed = threading.Event(), threading.Event(), list[int]()

    class Counting(Predictor):
        def stream(self, files: Any, **options: Any) -> Any:
            files = list(files)
            computed.append(len(files))
            entered.set()
            assert go.wait(30)
            return super().stream(files, **options)

    world = served[0].predictor
    counting = Counting(world.model, world.settings)
    with running([ServedModel("c", counting)], ServeOptions(max_wait=0)) as server, server.client() as client:
        first = threading.Thread(target=lambda: client.post("/v1/caption", files={"f": samples[0].content}))
        first.start()
        assert entered.wait(30)
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/caption", files={"f": samples[1].content}, timeout=1.0)
        while server.server.service.admission.inputs > 1:
            time.sleep(0.01)
        go.set()
        first.join(60)
        assert client.post("/v1/caption", files={"f": samples[2].content}).status_code == 200
    assert computed == [1, 1]


def test_a_client_that_leaves_a_stream_ends_the_search(served: list[ServedModel], samples: list[Sample]) -> None:
    closed = threading.Event()

    class Endless(Predictor):
        def stream(self, files: Any, **options: Any) -> Any:
            try:
                while True:
                    time.sleep(0.01)
                    yield "and "
            finally:
                closed.set()

    world = served[0].predictor
    endless = [ServedModel("endless", Endless(world.model, world.settings))]
    with running(endless) as server, server.client() as client:
        asked: dict[str, Any] = {"files": {"f": samples[0].content}, "data": {"stream": "true"}}
        with client.stream("POST", "/v1/caption", **asked) as answer:
            lines = [line for line, _ in zip(answer.iter_lines(), range(9), strict=False)]
            assert lines[:2] == ["event: piece", 'data: {"index": 0, "text": "and "}']
            assert server.server.service.admission.inputs == 1
        assert closed.wait(30)
        while server.server.service.admission.inputs:
            time.sleep(0.01)


def test_time(served: list[ServedModel], samples: list[Sample]) -> None:
    """An answer that takes too long is 504; a body that comes too slowly 408."""
    go = threading.Event()

    class Slow(Predictor):
        def stream(self, files: Any, **options: Any) -> Any:
            assert go.wait(30)
            return super().stream(files, **options)

    world = served[0].predictor
    slow = [ServedModel("slow", Slow(world.model, world.settings))]
    with running(slow, ServeOptions(timeout=0.3)) as server, server.client() as client:
        for options in ({}, {"stream": "true"}):
            refused(client.post("/v1/caption", files={"f": samples[0].content}, data=options), 504, "within 0.3 s")
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as half:
            half.sendall(b"POST /v1/caption HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            half.sendall(b"Content-Length: 100\r\n\r\n{")
            assert half.recv(100).startswith(b"HTTP/1.1 408 ")
        go.set()


@pytest.mark.parametrize("stream", [False, True])
def test_the_time_of_a_request_is_that_of_all_its_parts(
    stream: bool, served: list[ServedModel], samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of four inputs is read within the limit, all of them are not."""

    def slow(*values: Any) -> Any:
        time.sleep(0.4)
        return checked(*values)

    monkeypatch.setattr(tasks, "checked", slow)
    files = [("f", samples[n].content) for n in range(4)]
    with TestClient(make_app(served, ServeOptions(timeout=1.0))) as client:
        answer = client.post("/v1/caption", files=files, data={"stream": "true"} if stream else {})
        refused(answer, 504, "no answer within 1 s")


def test_a_schema_and_the_parts_of_a_message_are_bounded(client: TestClient, samples: list[Sample]) -> None:
    data = base64.b64encode(samples[0].content).decode()
    schema = {"intents": {f"intent {n}": [] for n in range(9_000)}}
    refused(client.post("/v1/understand", json={"inputs": [data], "schema": schema}), 413, "the limit is 100,000")
    parts = [{"type": "image_url", "image_url": {"url": "neither read nor fetched: ?"}}] * 3
    asked = {"model": "world", "messages": [{"role": "user", "content": parts}]}
    refused(client.post("/v1/chat/completions", json=asked), 400, "more pictures or sounds in one message")


@pytest.mark.parametrize(
    "wrong", [{"max_batch": 0}, {"queue": 0}, {"max_wait": -1.0}, {"timeout": 0.0}, {"max_bytes": 0}]
)
def test_options_out_of_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong)).replace("_", "-")):
        ServeOptions(**wrong)


def test_models_have_names_of_their_own(served: list[ServedModel]) -> None:
    for models in ([], [served[0], served[0]]):
        with pytest.raises(InputError, match="each by a name of its own"):
            make_app(models)


# ------------------------------------------------------------------------------------------------------------ fuzz

leaves = st.text(max_size=20) | st.integers() | st.floats() | st.booleans() | st.none()
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner), max_leaves=6
)
names = "inputs model prompt n beams stream temperature top_p seed context user history answers schema framing messages"
fields = st.sampled_from(names.split())
paths = st.sampled_from(["/v1/caption", "/v1/understand", "/v1/detect", "/v1/chat/completions"])
media = {"text": st.text(max_size=9), "image_url": values, "input_audio": st.dictionaries(st.just("data"), values)}
types = st.sampled_from(["text", "image_url", "input_audio", "x"])
parts = st.lists(st.fixed_dictionaries({"type": types}, optional=media), max_size=3)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": parts | st.text()}), max_size=3
)
calm = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fails_well(answer: Any) -> None:
    """No request of a stranger is the service's own failure."""
    assert answer.status_code in (200, 400, 404, 413, 415, 422), answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "code", "param"}


@calm
@given(path=paths, body=st.dictionaries(fields, values, max_size=4) | values)
def test_any_json_fails_well(path: str, body: Any, client: TestClient) -> None:
    content = json.dumps(body)  # NaN, infinities and half characters included
    fails_well(client.post(path, content=content, headers={"content-type": "application/json"}))


@calm
@given(asked=messages)
def test_any_messages_fail_well(asked: Any, client: TestClient) -> None:
    content = json.dumps({"model": "world", "messages": asked})
    fails_well(client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"}))


@calm
@given(path=paths, content=st.binary(max_size=200), head=st.binary(max_size=60))
def test_any_form_data_fails_well(path: str, content: bytes, head: bytes, client: TestClient) -> None:
    body = b"--b\r\nContent-Disposition: form-data; name=f; filename=" + head + b"\r\n\r\n" + content + b"\r\n--b--\r\n"
    fails_well(client.post(path, content=body, headers={"content-type": "multipart/form-data; boundary=b"}))


@calm
@given(start=st.sampled_from(range(12)), cut=st.floats(0, 1), damage=st.binary(max_size=8))
def test_any_damaged_file_fails_well(
    start: int, cut: float, damage: bytes, client: TestClient, samples: list[Sample]
) -> None:
    whole = samples[start].content
    at = int(cut * len(whole))
    fails_well(client.post("/v1/caption", files={"f": whole[:at] + damage + whole[at + 50 :]}))
