"""Forms of requests: fields, types and bounds; they are checked on arrival, and are what the OpenAPI page shows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Text = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(max_length=200)]
Phrase = Annotated[str, Field(min_length=1, max_length=200)]
Numbers = Annotated[list[FiniteFloat], Field(max_length=100_000)]
InputForm = str | dict[Name, str | list[Name] | Numbers]
"""Base64, a data: address, an http(s) address where the service allows them; or several by branch name."""


class TaskForm(BaseModel):
    """Fields that caption, understand and detect share."""

    model_config = ConfigDict(extra="forbid", title="Inputs")

    model: Name | None = Field(None, description="one of /v1/models; by default the first")
    inputs: list[InputForm] = Field(
        default_factory=list[InputForm],
        description="each: base64, a data: address, an http(s) address where allowed, or an object of those by "
        "branch name; in a form-data request, files of any field name",
    )
    context: Text | None = Field(None, description="text that the model reads beside each input, such as a transcript")
    user: Name | None = Field(None, description="whom a model that was trained with users writes for")
    history: list[Text] | None = Field(None, max_length=1000, description="that user's earlier texts")
    stream: bool = Field(False, description="answer by server-sent events")


class DecodingForm(BaseModel):
    """Options of a search."""

    n: int = Field(1, ge=1, description="texts an input, the best first")
    max_new_tokens: int | None = Field(None, ge=1, description="most tokens of a text")
    min_new_tokens: int | None = Field(None, ge=0, description="no text ends earlier")
    no_repeat_ngram_size: int | None = Field(None, ge=0, le=100)
    length_penalty: FiniteFloat | None = None
    temperature: FiniteFloat | None = Field(None, gt=0, le=100, description="asks for sampling, or shapes beams")
    top_p: FiniteFloat | None = Field(None, gt=0, le=1, description="asks for sampling")
    seed: int | None = Field(None, ge=-(2**62), le=2**62, description="asks for sampling")
    start_with: str | None = Field(None, max_length=1000, description="how each text begins")
    must_hold: list[Phrase] | None = Field(None, max_length=8, description="words or phrases that each text contains")
    avoid: list[Phrase] | None = Field(None, max_length=100, description="words or phrases that no text contains")


class CaptionForm(TaskForm, DecodingForm):
    """Request of /v1/caption."""

    model_config = ConfigDict(extra="forbid", title="Caption")

    prompt: Text | None = Field(None, description="stands before the text; by default the one trained with")
    beams: int | None = Field(None, ge=1, description="beams of the search; 1 is greedy")


class UnderstandForm(TaskForm):
    """Request of /v1/understand."""

    model_config = ConfigDict(extra="forbid", title="Understand")

    schema_: Name | dict[str, Any] | None = Field(
        None,
        alias="schema",
        description="name of a shipped schema, or the content of one; by default that trained with",
    )
    framing: Literal["choice", "yesno"] | None = None


class DetectForm(TaskForm):
    """Request of /v1/detect."""

    model_config = ConfigDict(extra="forbid", title="Detect")

    answers: tuple[Name, Name] | None = Field(None, description="two answers to compare; by default those trained with")


class ContentPart(BaseModel):
    """Part of a chat message: {"type": "text" | "image_url" | "input_audio", ...}."""

    type: Name
    text: Text | None = None
    image_url: dict[str, Any] | str | None = None
    input_audio: dict[str, Any] | None = None


class ChatMessage(BaseModel):
    """Message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[ContentPart] | None = None


class ChatStreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool = False


class ChatForm(DecodingForm):
    """Request of /v1/chat/completions; fields that OpenAI has and this service has no use for are ignored."""

    model_config = ConfigDict(extra="ignore", title="ChatCompletion")

    model: Name
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    stream: bool = False
    stream_options: ChatStreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: FiniteFloat | None = Field(None, ge=0, le=100, description="0 is greedy; absent: as the model was set")
    top_p: FiniteFloat | None = Field(None, ge=0, le=1)
    user: Name | None = None
    prompt: Text | None = Field(None, description="stands before the text, in place of the message's text")
    context: Text | None = None
    beams: int | None = Field(None, ge=1)
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    logprobs: bool | None = None
    stop: str | list[str] | None = None
    response_format: dict[str, Any] | None = None
