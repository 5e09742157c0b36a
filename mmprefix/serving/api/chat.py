"""/v1/chat/completions in OpenAI's form: the picture and the sound of a message in, the model's text as the answer out.

The media of the last message that has any are the input. The text of the message is the model's prompt where its
decoder answers in a chat, or the service was started with ``chat_text="prompt"``; a captioning model has learned to
write without a question, and is not disturbed by one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from mmprefix.decoders.chat import ChatCodec
from mmprefix.errors import InputError
from mmprefix.serving.api.forms import ChatForm, ChatMessage, ContentPart
from mmprefix.serving.api.tasks import ReadableInput, checked_input, decoding_options
from mmprefix.serving.body import read_body
from mmprefix.serving.calls import InputToRead, ServedModel, TaskCall
from mmprefix.serving.events import DONE, event, event_response, from_thread
from mmprefix.serving.faults import RequestError
from mmprefix.serving.inputs import InputReader, kinds_of
from mmprefix.serving.service import Service
from mmprefix.serving.writing import can_stream, pieces


@dataclass(frozen=True)
class Completion:
    """A chat request that can be computed: its form, its model, the call and the input."""

    form: ChatForm
    model: ServedModel
    call: TaskCall
    row: InputToRead
    name: str

    def head(self, kind: str) -> dict[str, Any]:
        """Fields that an answer and each of its chunks have."""
        return {"id": f"chatcmpl-{self.name}", "object": kind, "created": int(time.time()), "model": self.model.name}

    @property
    def most_tokens(self) -> int:
        """Most tokens of a text."""
        options = dict(self.call.options)
        return options.get("max_new_tokens", self.model.predictor.options.max_new_tokens)

    def usage(self, texts: list[str]) -> dict[str, int]:
        """Tokens of the prompt's text and of the answers; the prefix of the media is not counted."""
        before = token_count(self.model, self.row.prompt or "") if self.row.prompt else 0
        written = sum(token_count(self.model, text) for text in texts)
        return {"prompt_tokens": before, "completion_tokens": written, "total_tokens": before + written}

    def reason(self, text: str) -> str:
        """Why ``text`` ended: "length" where it has as many tokens as it may."""
        return "length" if token_count(self.model, text) >= self.most_tokens else "stop"


def token_count(model: ServedModel, text: str) -> int:
    """Number of the decoder's tokens in ``text``."""
    codec: Any = getattr(model.predictor.model.decoder, "codec", None)
    return len(text.split()) if codec is None else len(codec.subword_ids(text))


def routes(service: Service) -> APIRouter:
    """Endpoint of chats."""
    router = APIRouter(prefix="/v1", tags=["chat"])
    content = {"application/json": {"schema": ChatForm.model_json_schema()}}
    body = {"requestBody": {"required": True, "content": content}}

    @router.post("/chat/completions", openapi_extra=body, summary="Text of a picture or a sound, in OpenAI's form")
    async def chat(request: Request) -> Response:
        form = (await read_body(request, service.options)).form(ChatForm)
        refuse_unsupported(form)
        asked = await _completion(service, request, form)
        if form.stream:
            service.metrics.streams.labels(asked.model.name).inc()
            return await event_response(_chunks(service, request, asked))
        texts = await _texts(service, request, asked)
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": asked.reason(text),
            }
            for number, text in enumerate(texts)
        ]
        return JSONResponse({**asked.head("chat.completion"), "choices": choices, "usage": asked.usage(texts)})

    return router


def refuse_unsupported(form: ChatForm) -> None:
    """Raise RequestError 400 for fields that would change an answer, and that no model of ours can obey."""
    form_of_answer = (form.response_format or {}).get("type", "text")
    for name, asked in (
        ("tools", form.tools),
        ("functions", form.functions),
        ("logprobs", form.logprobs),
        ("stop", form.stop),
        ("response_format", form_of_answer != "text"),
    ):
        if asked:
            raise RequestError(400, f"{name}: is not supported; leave it out", code="unsupported", param=name)


async def _completion(service: Service, request: Request, form: ChatForm) -> Completion:
    """The input of a request, read in a thread. Raises InputError, RequestError."""
    model = service.model(form.model)
    changes: dict[str, Any] = {"max_new_tokens": form.max_completion_tokens or form.max_tokens or form.max_new_tokens}
    samples = bool(form.temperature) or form.top_p not in (None, 0, 1)
    changes |= {"top_p": form.top_p if samples and form.top_p != 1 and form.top_p else None}
    changes |= {"seed": form.seed if samples else None, "temperature": form.temperature or None}
    greedy = 1 if form.temperature == 0 and form.beams is None and form.n == 1 else form.beams
    options = decoding_options(service, form.model_copy(update=changes), greedy)
    call = TaskCall(model.name, "caption", tuple(sorted(options.items())))
    reader = InputReader(model, service.options.allow_urls, min(service.options.timeout, 20.0))
    may_fetch = service.options.allow_urls
    async with request.state.time.bound():
        read = await service.read(_read, reader, (form, call), service.options.chat_text, fetches=may_fetch)
    return Completion(form, model, read.call, read.row, request.state.request_id)


def _read(reader: InputReader, asked: tuple[ChatForm, TaskCall], chat_text: str) -> ReadableInput:
    form, call = asked
    message = media_message(form.messages)
    value = message_input(reader, message)
    codec = getattr(reader.model.predictor.model.decoder, "codec", None)
    reads_text = isinstance(codec, ChatCodec) if chat_text == "auto" else chat_text == "prompt"
    prompt = form.prompt if form.prompt is not None else (message_text(message) or None) if reads_text else None
    model = reader.model.predictor
    user = form.user if "user" in model.kinds or "history" in model.kinds else None  # OpenAI's user is any id
    return checked_input(reader.model, call, InputToRead(value, prompt, form.context, user))


def media_message(messages: list[ChatMessage]) -> ChatMessage:
    """The last message with a picture or a sound; RequestError 400 where none has one."""
    for message in reversed(messages):
        if isinstance(message.content, list) and any(part.type != "text" for part in message.content):
            return message
    advice = "give a message with an image_url or an input_audio part"
    raise RequestError(400, f"messages: no picture and no sound; {advice}", code="no_input", param="messages")


def message_text(message: ChatMessage) -> str:
    """Texts of a message, one a line."""
    parts = message.content if isinstance(message.content, list) else []
    return "\n".join(part.text for part in parts if part.type == "text" and part.text)


def message_input(reader: InputReader, message: ChatMessage) -> Any:
    """Media of a message: bytes, or bytes by branch where a model reads several. Raises InputError, RequestError."""
    parts = [part for part in (message.content if isinstance(message.content, list) else []) if part.type != "text"]
    kinds = reader.model.predictor.kinds
    if len(parts) > max(1, len(kinds)):  # before any of them is decoded, or fetched
        raise _too_many_parts()
    contents = [reader.content(_media(part)) for part in parts]
    if len(contents) == 1:
        return contents[0]
    by_branch: dict[str, bytes] = {}
    for content, kind in zip(contents, kinds_of(contents), strict=True):
        names = [name for name, reads in kinds.items() if reads == kind and name not in by_branch]
        if not names:
            raise _too_many_parts()
        by_branch[names[0]] = content
    return by_branch


def _too_many_parts() -> InputError:
    return InputError("messages: more pictures or sounds in one message than the model reads; send one a request")


def _media(part: ContentPart) -> str:
    """Address or base64 of a part; RequestError 400 for parts of other types."""
    if part.type == "image_url":
        value: Any = part.image_url.get("url") if isinstance(part.image_url, dict) else part.image_url
    elif part.type == "input_audio":
        value = (part.input_audio or {}).get("data")
    else:
        message = f"messages: a part of type {part.type!r}; there are text, image_url and input_audio"
        raise RequestError(400, message, code="unsupported", param="messages")
    if not isinstance(value, str):
        raise RequestError(400, f"messages: a part {part.type} without its data", code="bad_form", param="messages")
    return value


async def _texts(service: Service, request: Request, asked: Completion) -> list[str]:
    (result,) = await service.answers(request, [service.submit(asked.call, asked.row)])
    if isinstance(result, BaseException):
        raise result
    return [candidate.text for candidate in result]


async def _chunks(service: Service, request: Request, asked: Completion) -> AsyncGenerator[str, None]:
    """Chunks of a streamed completion, then [DONE]."""
    head = asked.head("chat.completion.chunk")
    with_usage = bool(asked.form.stream_options and asked.form.stream_options.include_usage)

    def chunk(number: int, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**head, "choices": [choice], **({"usage": None} if with_usage else {})})

    texts: list[str] = [""]
    if can_stream(asked.model, asked.call):
        limit = request.state.time
        written = from_thread(service.writers, lambda: pieces(asked.model, asked.call, asked.row), limit)
        async for piece in written:
            yield chunk(0, {"content": piece} if texts[0] else {"role": "assistant", "content": piece})
            texts[0] += piece
    else:
        texts = await _texts(service, request, asked)
        for number, text in enumerate(texts):
            yield chunk(number, {"role": "assistant", "content": text})
    for number, text in enumerate(texts):
        yield chunk(number, {}, asked.reason(text))
    if with_usage:
        yield event({**head, "choices": [], "usage": asked.usage(texts)})
    yield DONE
