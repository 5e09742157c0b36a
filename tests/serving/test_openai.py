"""/v1/chat/completions, asked by OpenAI's own client: a picture and a sound, streamed and not."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from mmprefix import Predictor
from mmprefix.serving.calls import ServedModel
from tiny.service import Running, Sample, running


@pytest.fixture(scope="module")
def server(served: list[ServedModel]) -> Iterator[Running]:
    with running(served) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    http: Any = httpx.Client(trust_env=False)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, http_client=http) as one:
        yield one


def part(sample: Sample) -> Any:
    """Content part of a picture or a sound."""
    data = base64.b64encode(sample.content).decode()
    if sample.name.endswith(".wav"):
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def message(sample: Sample, text: str = "What is this?") -> Any:
    return {"role": "user", "content": [{"type": "text", "text": text}, part(sample)]}


@pytest.mark.parametrize("number", [1, 7])
def test_an_answer(number: int, client: openai.OpenAI, samples: list[Sample]) -> None:
    sample = samples[number]
    answer = client.chat.completions.create(model="world", messages=[message(sample)])
    assert answer.object == "chat.completion"
    assert [choice.message.content for choice in answer.choices] == [sample.text]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert answer.usage.completion_tokens == len(sample.text.split())  # a tokenizer of whole words


@pytest.mark.parametrize("number", [1, 7])
def test_a_streamed_answer(number: int, client: openai.OpenAI, samples: list[Sample]) -> None:
    sample = samples[number]
    chunks = list(
        client.chat.completions.create(
            model="world", messages=[message(sample)], stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in deltas) == sample.text
    assert deltas[0].delta.role == "assistant"
    assert [choice.finish_reason for choice in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == len(sample.text.split())


def test_options(client: openai.OpenAI, samples: list[Sample], predictor: Predictor) -> None:
    sample = samples[3]
    ask: Any = {"model": "world", "messages": [message(sample)]}

    def texts(**options: Any) -> list[str]:
        answer = client.chat.completions.create(**ask, **options)
        return [choice.message.content or "" for choice in answer.choices]

    assert texts(temperature=0, top_p=1, seed=3) == [sample.text]
    assert texts(n=2) == predictor(sample.content, num_return=2)
    assert texts(temperature=1.5, seed=3) == [predictor(sample.content, temperature=1.5, seed=3)]
    wanted = predictor(sample.content, num_beams=3, prompt="a")
    assert texts(extra_body={"beams": 3, "prompt": "a"}, user="somebody") == [wanted]
    short = client.chat.completions.create(**ask, max_completion_tokens=3)
    assert short.choices[0].message.content == predictor(sample.content, max_new_tokens=3)
    assert short.choices[0].finish_reason == "length"


def test_the_last_message_with_media_counts(client: openai.OpenAI, samples: list[Sample]) -> None:
    first, second = samples[0], samples[4]
    messages = [
        {"role": "system", "content": "You see."},
        message(first),
        {"role": "assistant", "content": first.text},
        message(second),
        {"role": "user", "content": "And now?"},
    ]
    asked: Any = messages
    answer = client.chat.completions.create(model="world", messages=asked)
    assert answer.choices[0].message.content == second.text


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["world"]
    assert client.models.retrieve("world").owned_by == "mmprefix"


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "gpt-4o"}, 404, "no model 'gpt-4o'; there are world"),
        ({"messages": [{"role": "user", "content": "hello"}]}, 400, "no picture and no sound"),
        ({"messages": []}, 422, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools: is not supported"),
        ({"n": 1000}, 400, "n 1000: the limit is 16"),
        ({"max_tokens": 10**6}, 400, "max_new_tokens 1000000: the limit is 256"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
                ]
            },
            400,
            "neither base64",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x.org/a"}}]}
                ]
            },
            400,
            "fetches no addresses",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, 400, "type 'file'"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "without its data"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused(
    stream: bool, change: dict[str, Any], status: int, words: str, client: openai.OpenAI, samples: list[Sample]
) -> None:
    ask: Any = {"model": "world", "messages": [message(samples[0])], "stream": stream, **change}
    with pytest.raises(openai.APIStatusError) as refusal:
        client.chat.completions.create(**ask)
    assert refusal.value.status_code == status
    assert words in refusal.value.message


def test_two_pictures_for_one_branch_are_refused(client: openai.OpenAI, samples: list[Sample]) -> None:
    asked: Any = [{"role": "user", "content": [part(samples[0]), part(samples[1])]}]
    with pytest.raises(openai.BadRequestError, match="send one a request"):
        client.chat.completions.create(model="world", messages=asked)
