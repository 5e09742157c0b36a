"""Inputs and keyword arguments of a call → requests of batches, all at once or as the inputs come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from io import IOBase
from itertools import islice
from typing import Any, cast

from mmprefix.errors import InputError
from mmprefix.inference.batched import WINDOW_BATCHES, BatchRequest
from mmprefix.inference.call_options import CallOptions
from mmprefix.inference.inputs import Input, as_list, input_kinds, with_texts
from mmprefix.inference.user_prefixes import UserLookup
from mmprefix.inference.users import USER_BRANCH, encoded_histories, prompt_histories, user_texts, users_of
from mmprefix.media.source import is_array
from mmprefix.model import PrefixLM
from mmprefix.saved_model import ModelSettings
from mmprefix.types import FeatureRow


def input_list(files: Input | Iterable[Input]) -> tuple[list[Input], bool]:
    """The inputs as a list, and whether several were given; a generator is read to its end."""
    plain: Any = list(files) if isinstance(files, Iterator) and not isinstance(files, IOBase) else files
    return as_list(plain)


def is_one_input(files: Input | Iterable[Input]) -> bool:
    """True for what ``input_list`` takes for one input; an iterable of another kind, a set or a dataset, is several."""
    if isinstance(files, str | bytes | dict | IOBase) or is_array(files) or hasattr(files, "get_all_samples"):
        return True
    if isinstance(files, list | tuple):
        return bool(files) and not as_list(files)[1]
    return not isinstance(files, Iterable)


def inputs_or_contexts(
    files: Input | Iterable[Input] | None, context: str | Sequence[str] | None
) -> tuple[list[Input], bool]:
    """The inputs as ``input_list`` gives them; without files, an empty input for each context."""
    if files is not None:
        return input_list(files)
    if context is None:
        raise InputError("no input given; give a file, a list of files, or a context")
    return ([{}], False) if isinstance(context, str) else ([{} for _ in context], True)


def make_request(
    model: PrefixLM,
    settings: ModelSettings,
    inputs: list[Input],
    options: CallOptions,
    *,
    targets: list[list[str]] | None = None,
    users: UserLookup | None = None,
) -> BatchRequest:
    """Request for ``inputs`` with prompts and contexts of a call, or those of the model where it gives none."""
    count, context = len(inputs), options.get("context")
    if context is not None and not model.reads_text:
        raise InputError("context: this model was trained without one; leave it out")
    prompts = _one_each("prompt", options.get("prompt"), settings.prompt or "", count)
    contexts = _one_each("context", context, "", count)
    own: list[list[str]] = [[] for _ in inputs] if targets is None else targets
    size, urls = options.get("batch_size", 16), options.get("allow_urls", False)
    kinds = input_kinds(model)
    in_prompt, histories = bool(model.wording.history), list[Sequence[str]]()
    texts = user_texts(options, kinds, count, None if users is None else users.store, in_prompt=in_prompt)
    values = [with_texts(value, kinds) for value in inputs]
    if in_prompt:
        histories, values, texts = prompt_histories(values, texts, kinds)
    features: list[dict[str, FeatureRow]] = []
    if users is not None:
        features, texts = encoded_histories(model, users, options, values, texts=texts)
    if users is not None and users.key is not None:  # ids are looked up instead of read
        names, values = users_of(options, values)
        prefixes = users.features(model, names) or [{} for _ in values]
        features = [{**encoded, **own} for encoded, own in zip(features, prefixes, strict=True)]
        texts = [{name: text for name, text in row.items() if name != USER_BRANCH} for row in texts]
    beside = texts if any(texts) else ()
    request = BatchRequest(values, prompts, contexts, own, size, urls, texts=beside, histories=histories)
    return replace(request, features=features) if any(features) else request


def stream_requests(
    model: PrefixLM,
    settings: ModelSettings,
    files: Iterable[Input],
    options: CallOptions,
    *,
    users: UserLookup | None = None,
) -> Iterator[BatchRequest]:
    """Requests of a few batches each, made as ``files`` come; several prompts or contexts are one an input."""
    iterator, first = iter(files), 0
    step = max(1, options.get("batch_size", 16)) * WINDOW_BATCHES
    while inputs := list(islice(iterator, step)):
        part: CallOptions = {**options}
        for name in ("prompt", "context", "user"):
            texts = options.get(name)
            if texts is not None and not isinstance(texts, str):
                part[name] = texts[first : first + step]
        histories = options.get("history")
        if histories is not None and not all(isinstance(item, str) for item in histories):
            part["history"] = cast("Sequence[Sequence[str]]", histories)[first : first + step]
        request = make_request(model, settings, inputs, part, users=users)
        yield replace(request, first=first)
        first += len(inputs)


def _one_each(option: str, texts: str | Sequence[str] | None, default: str, count: int) -> list[str]:
    """A text an input; InputError for another number of texts."""
    if texts is None or isinstance(texts, str):
        return [default if texts is None else texts] * count
    if len(texts) != count:
        raise InputError(f"{option}: {len(texts)} {option}s for {count} inputs; give one for all, or one an input")
    return list(texts)
