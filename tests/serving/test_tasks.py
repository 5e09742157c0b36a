"""/v1/caption, /v1/understand and /v1/detect: forms of requests and answers, errors in their place, right pairing."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import mmprefix
from mmprefix import Predictor
from mmprefix.features.neighbours import Neighbours
from mmprefix.saved_model import Detection, ModelSettings
from mmprefix.serving.calls import ServedModel
from mmprefix.serving.service import ServeOptions
from tiny import slu_system as tiny_slu_system
from tiny.models import frozen_parts
from tiny.service import Running, Sample, running
from tiny.slu_system import OPTIONS, SluSystem
from tiny.users import picture, save_personal


@pytest.fixture(scope="module")
def server(served: list[ServedModel]) -> Iterator[Running]:
    with running(served) as one:
        yield one


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as one:
        yield one


def b64(sample: Sample) -> str:
    return base64.b64encode(sample.content).decode()


def texts(answer: httpx.Response) -> list[str]:
    """Best text of each result."""
    assert answer.status_code == 200, answer.text
    rows = answer.json()["results"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    return [row["texts"][0]["text"] for row in rows]


def events_of(text: str) -> list[tuple[str | None, Any]]:
    """Type and data of each event, read as the standard says."""
    events: list[tuple[str | None, Any]] = []
    for block in text.split("\n\n"):
        fields = [
            (line.partition(": ")[0], line.partition(": ")[2])
            for line in block.splitlines()
            if not line.startswith(":")
        ]
        assert [name for name, _ in fields if name not in ("event", "data")] == []
        if fields:
            data = "\n".join(value for name, value in fields if name == "data")
            events.append((dict(fields).get("event"), data if data == "[DONE]" else json.loads(data)))
    return events


def test_files_as_form_data(client: httpx.Client, samples: list[Sample]) -> None:
    chosen = [samples[n] for n in (0, 7, 3)]
    answer = client.post("/v1/caption", files=[("file", (each.name, each.content)) for each in chosen])
    assert texts(answer) == [each.text for each in chosen]
    body = answer.json()
    assert [row["name"] for row in body["results"]] == [each.name for each in chosen]
    assert (body["object"], body["model"], body["id"]) == ("caption", "world", answer.headers["x-request-id"])


def test_base64_data_addresses_and_branches(client: httpx.Client, samples: list[Sample]) -> None:
    picture, sound = samples[1], samples[8]
    url_safe = base64.urlsafe_b64encode(sound.content).decode().rstrip("=")
    inputs = [b64(picture), f"data:image/png;base64,{b64(picture)}", url_safe, {"image": b64(picture)}]
    answer = client.post("/v1/caption", json={"inputs": inputs, "model": "world"})
    assert texts(answer) == [picture.text, picture.text, sound.text, picture.text]


def test_a_text_begins_holds_and_avoids_as_asked(
    client: httpx.Client, samples: list[Sample], predictor: Predictor
) -> None:
    plain = texts(client.post("/v1/caption", json={"inputs": [b64(samples[0])]}))[0]
    word = plain.split()[-1]
    asked = {"start_with": "the", "avoid": [word], "must_hold": ["blue", "red"]}
    (text,) = texts(client.post("/v1/caption", json={"inputs": [b64(samples[0])], **asked}))
    assert text == predictor(samples[0].content, **asked)
    words = text.replace(",", " ").split()
    assert words[0] == "the"
    assert word not in words
    assert {"blue", "red"} <= set(words)
    answer = client.post("/v1/caption", json={"inputs": [b64(samples[0])], "must_hold": ["red"], "avoid": ["red"]})
    assert answer.status_code == 400
    assert "must_hold" in answer.text
    answer = client.post("/v1/caption", json={"inputs": [b64(samples[0])], "must_hold": ["red"] * 9})
    assert answer.status_code in (400, 422)
    assert "must_hold" in answer.text


def test_options_reach_the_search(client: httpx.Client, samples: list[Sample], predictor: Predictor) -> None:
    sample = samples[2]
    wanted = predictor.candidates(sample.content, num_return=2, num_beams=3, prompt="a large", max_new_tokens=7)
    data = {"n": "2", "beams": "3", "prompt": "a large", "max_new_tokens": "7"}
    answer = client.post("/v1/caption", files={"any": (sample.name, sample.content)}, data=data)
    assert answer.status_code == 200, answer.text
    rows = answer.json()["results"][0]["texts"]
    assert [row["text"] for row in rows] == [each.text for each in wanted]
    assert [row["score"] for row in rows] == pytest.approx([each.score for each in wanted], abs=1e-4)
    drawn = {"inputs": [b64(sample)], "seed": 5, "temperature": 1.5}
    assert texts(client.post("/v1/caption", json=drawn)) == [predictor(sample.content, seed=5, temperature=1.5)]


def test_an_error_is_in_its_place_and_one_input_s_own(client: httpx.Client, samples: list[Sample]) -> None:
    files = [("f", ("a.png", samples[0].content)), ("f", ("b.png", b"no picture")), ("f", ("c", samples[9].content))]
    rows = client.post("/v1/caption", files=files).json()["results"]
    assert [row["texts"][0]["text"] for row in (rows[0], rows[2])] == [samples[0].text, samples[9].text]
    assert rows[1]["name"] == "b.png"
    assert rows[1]["error"]["code"] == "bad_input"
    assert "cannot be read" in rows[1]["error"]["message"] or "can be read" in rows[1]["error"]["message"]


def test_a_cut_off_picture_passes_the_checks_of_its_head_and_is_refused_when_decoded(
    client: httpx.Client, samples: list[Sample]
) -> None:
    cut = samples[0].content[:200]
    answer = client.post("/v1/caption", files=[("f", cut), ("f", samples[1].content)])
    rows = answer.json()["results"]
    assert "error" in rows[0]
    assert rows[1]["texts"][0]["text"] == samples[1].text
    assert client.post("/v1/caption", files={"f": cut}).status_code == 400


@pytest.mark.parametrize("several", [False, True])
def test_streamed(several: bool, client: httpx.Client, samples: list[Sample]) -> None:
    chosen = [samples[4], samples[10]] if several else [samples[4]]
    body = {"inputs": [b64(each) for each in chosen] + (["!"] if several else []), "stream": True}
    answer = client.post("/v1/caption", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert events.pop() == (None, "[DONE]")
    results = {data["index"]: data for name, data in events if name == "result"}
    assert [results[n]["texts"][0]["text"] for n in range(len(chosen))] == [each.text for each in chosen]
    if several:
        assert results[2]["error"]["code"] == "bad_input"
    else:
        pieces = [data["text"] for name, data in events if name == "piece"]
        assert "".join(pieces) == samples[4].text
        assert len(pieces) > 3


def test_what_cannot_be_streamed_has_a_status_of_its_own(client: httpx.Client, samples: list[Sample]) -> None:
    answer = client.post("/v1/caption", files={"f": samples[0].content[:200]}, data={"stream": "true"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "bad_input"


def test_each_of_many_clients_gets_its_own_answer(server: Running, samples: list[Sample]) -> None:
    """Good and bad requests of several options at once: every answer belongs to its request, and batches were made."""

    def ask(number: int) -> bool:
        sample = samples[number % len(samples)]
        with server.client() as client:
            for turn in range(3):
                if (number + turn) % 5 == 0:
                    answer = client.post("/v1/caption", files={"f": b"bad" * number})
                    assert answer.status_code == 400
                options = {"beams": "2"} if turn == 2 else {}
                headers = {"x-request-id": f"r{number}.{turn}"}
                answer = client.post("/v1/caption", files={"f": sample.content}, data=options, headers=headers)
                assert answer.json()["id"] == f"r{number}.{turn}"
                if not options and texts(answer) != [sample.text]:
                    return False
        return True

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(ask, range(24)))
    measures = server.server.service.metrics.registry
    labels = {"model": "world", "task": "caption"}
    count = measures.get_sample_value("mmprefix_batch_size_count", labels)
    total = measures.get_sample_value("mmprefix_batch_size_sum", labels)
    assert count
    assert total
    assert total / count > 1.5
    assert server.server.service.admission.inputs == 0
    assert server.server.service.admission.bytes == 0


def test_each_user_s_own_text(tmp_path: Path) -> None:
    """Users who ask at once share a batch, and each gets the text of its own prefix; a stranger's name is refused."""
    users = [f"u{n}" for n in range(6)]
    folder = save_personal(tmp_path / "model", frozen_parts(tmp_path / "parts"), "deep", *users)
    model = mmprefix.load(folder, device="cpu")
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    content = stream.getvalue()
    wanted = {user: model(content, user=user) for user in users}
    assert len(set(wanted.values())) > 1
    with running([ServedModel("personal", model)], ServeOptions(max_wait=0.5, max_batch=6)) as server:

        def ask(user: str) -> str:
            with server.client() as client:
                (text,) = texts(client.post("/v1/caption", files={"f": content}, data={"user": user}))
                return text

        with ThreadPoolExecutor(6) as pool:
            assert dict(zip(users, pool.map(ask, users), strict=True)) == wanted
        labels = {"model": "personal", "task": "caption"}
        batches = server.server.service.metrics.registry.get_sample_value("mmprefix_batch_size_count", labels)
        assert batches is not None
        assert batches < 6


def test_neighbours_choose_for_each_of_many_clients(
    predictor: Predictor, samples: list[Sample], tmp_path: Path
) -> None:
    """Pictures that wait together are chosen for as each alone; sounds beside them, which nobody described, are not."""
    pictures, sound = [sample.content for sample in samples[:4]], samples[6].content
    encoder = predictor.model.encoder("image")
    beams = predictor.candidates(pictures, num_beams=5, num_return=5)
    captions = [[f"{texts[-1].text} {word}"] for texts, word in zip(beams, "abcd", strict=True)]
    vectors = Neighbours(encoder, torch.zeros(1, encoder.pooled_dim), [["a"]], 1, 1).embed(pictures)
    Neighbours(encoder, vectors, captions, 1, 1, judges=1).save(tmp_path / "file")
    model = mmprefix.load(device="cpu", neighbours=tmp_path / "file")
    wanted = [model(content) for content in pictures]
    assert wanted != [texts[0].text for texts in beams]
    options = ServeOptions(max_wait=0.5, max_batch=4)
    with running([ServedModel("world", model)], options) as server:

        def ask(content: bytes) -> str:
            with server.client() as client:
                return texts(client.post("/v1/caption", files={"f": content}))[0]

        with ThreadPoolExecutor(5) as pool:
            assert list(pool.map(ask, [*pictures, sound])) == [*wanted, model(sound)]
        with server.client() as client:
            body = {"inputs": [base64.b64encode(pictures[0]).decode()], "stream": True}
            events = events_of(client.post("/v1/caption", json=body).text)
            assert [name for name, _ in events] == ["result", None]  # no piece: the text is chosen when it is whole
            assert events[0][1]["texts"][0]["text"] == wanted[0]
            answer = client.post("/v1/caption", files={"f": pictures[0]}, data={"beams": "1"})
            assert answer.status_code == 400
            assert "neighbours: choose among several texts" in answer.json()["error"]["message"]


# ------------------------------------------------------------------------------------------- understand and detect


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> SluSystem:
    return tiny_slu_system.build(tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="module")
def listeners(orders: SluSystem) -> list[ServedModel]:
    hears = Predictor(orders.whisper_model(), ModelSettings(OPTIONS))
    detects = Predictor(orders.detection_model(), ModelSettings(OPTIONS, task=Detection(("true", "false"))))
    return [ServedModel("hears", hears), ServedModel("detects", detects)]


@pytest.fixture(scope="module")
def commands(listeners: list[ServedModel]) -> Iterator[httpx.Client]:
    with running(listeners) as server, server.client() as client:
        yield client


SCHEMA = {
    "name": "home",
    "intents": {"on": {"description": "light"}, "ask": {"description": "news", "slots": ["thing"]}},
    "slots": {"thing": {}},
}


def test_understand(commands: httpx.Client, listeners: list[ServedModel], orders: SluSystem) -> None:
    from mmprefix.slu.schema import read_schema

    files = [Path(orders.path(f"{n}.wav")).read_bytes() for n in range(3)]
    wanted = listeners[0].predictor.understand(files, schema=read_schema(SCHEMA))
    answer = commands.post("/v1/understand", files=[("f", each) for each in files], data={"schema": json.dumps(SCHEMA)})
    assert answer.status_code == 200, answer.text
    rows = answer.json()["results"]
    assert [(row["intent"], row["slots"]) for row in rows] == [(each["intent"], each["slots"]) for each in wanted]


def test_detect(commands: httpx.Client, listeners: list[ServedModel], orders: SluSystem) -> None:
    sound = Path(orders.path("0.wav")).read_bytes()
    numbers = [-1.0, 0.5, 1.0, 0.2]
    coded = base64.b64encode(sound).decode()
    values: list[Any] = [{"audio": sound}, {"signals": tuple(numbers)}, {"audio": sound, "signals": tuple(numbers)}]
    wanted = listeners[1].predictor.detect(values)
    inputs = [{"audio": coded}, {"signals": numbers}, {"audio": coded, "signals": numbers}]
    answer = commands.post("/v1/detect", json={"model": "detects", "inputs": inputs})
    assert answer.status_code == 200, answer.text
    assert [row["score"] for row in answer.json()["results"]] == pytest.approx(wanted, abs=1e-4)
    context = commands.post("/v1/detect", json={"model": "detects", "context": "the dog runs"})
    assert context.json()["results"][0]["score"] == pytest.approx(
        listeners[1].predictor.detect(context="the dog runs")[0], abs=1e-4
    )


def test_a_schema_is_never_a_path(commands: httpx.Client, orders: SluSystem) -> None:
    """The path of a good schema on this machine is refused as any unknown name is."""
    file = orders.folder / "private.yaml"
    file.write_text(tiny_slu_system.SCHEMA)
    sound = Path(orders.path("0.wav")).read_bytes()
    for schema in (str(file), "../../etc/passwd", "no_such"):
        answer = commands.post("/v1/understand", files={"f": sound}, data={"schema": schema})
        assert answer.status_code == 400
        assert "shipped schemas are" in answer.json()["error"]["message"]


def test_models(commands: httpx.Client) -> None:
    listed = commands.get("/v1/models").json()
    assert [(each["id"], each["object"]) for each in listed["data"]] == [("hears", "model"), ("detects", "model")]
    assert listed["data"][1]["tasks"] == ["caption", "detect"]
    assert set(listed["data"][1]["reads"].values()) >= {"audio", "signals"}
    assert commands.get("/v1/models/detects").json() == listed["data"][1]
    assert commands.get("/v1/models/none").status_code == 404
