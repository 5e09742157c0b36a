"""Inputs and keyword arguments of a call → requests of batches, all at once or as the inputs come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import IOBase
from itertools import islice
from typing import Any, cast

from mmprefix.errors import InputError
from mmprefix.features.neighbours import Neighbours
from mmprefix.inference.batches.neighbours import NeighbourChoice, NeighbourReader
from mmprefix.inference.batches.request import WINDOW_BATCHES, BatchRequest
from mmprefix.inference.call_options import CallOptions, refuse_unknown
from mmprefix.inference.inputs import Input, as_list, input_kinds, with_texts
from mmprefix.inference.user_prefixes import UserLookup
from mmprefix.inference.users import USER_BRANCH, encoded_histories, prompt_histories, user_texts, users_of
from mmprefix.media.source import Texts, is_array
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


@dataclass(frozen=True)
class Requests:
    """Requests of calls on a model; ``users`` are looked up.

    ``neighbours`` are compared with each input of a model that reads a context, and of a call that has a ``choice``.
    """

    model: PrefixLM
    settings: ModelSettings
    users: UserLookup | None = None
    neighbours: Neighbours | None = None
    choice: NeighbourChoice | None = None

    def chosen_by(self, choice: NeighbourChoice | None) -> Requests:
        """These, for a call whose texts are chosen by ``choice``."""
        return replace(self, choice=choice)

    def for_answers(self, options: CallOptions) -> Requests:
        """These, for a call that answers questions: TypeError for an option that such a call does not have.

        Raises InputError for neighbours that would have no effect on it.
        """
        refuse_unknown(options, CallOptions)
        if self.neighbours is not None and not self.model.reads_text:
            raise InputError("neighbours: choose among captions, not among answers; load the model without them")
        return self

    def of(self, inputs: list[Input], options: CallOptions, targets: list[list[str]] | None = None) -> BatchRequest:
        """Request for ``inputs`` with prompts and contexts of a call, or those of the model where it gives none."""
        model, users = self.model, self.users
        count, context = len(inputs), options.get("context")
        if context is not None and not model.reads_text:
            raise InputError("context: this model was trained without one; leave it out")
        prompts = _one_each("prompt", options.get("prompt"), self.settings.prompt or "", count)
        contexts = _one_each("context", context, "", count)
        own: list[list[str]] = [[] for _ in inputs] if targets is None else targets
        size, urls = options.get("batch_size", 16), options.get("allow_urls", False)
        is_compared = model.reads_text or self.choice is not None
        reader = NeighbourReader(self.neighbours, model) if self.neighbours is not None and is_compared else None
        request = BatchRequest(inputs, prompts, contexts, own, size, urls, neighbours=reader)
        kinds = input_kinds(model)
        in_prompt, histories = bool(model.wording.history), list[Sequence[str]]()
        texts = user_texts(options, kinds, count, None if users is None else users.store, in_prompt=in_prompt)
        values = [with_texts(value, kinds) for value in inputs]
        if in_prompt:
            histories, values, texts = prompt_histories(values, texts, kinds)
        features: list[dict[str, FeatureRow]] = []
        if users is not None:
            features, values, texts = _looked_up(model, users, options, values, texts=texts)
        request = replace(request, inputs=values, texts=texts if any(texts) else (), histories=histories)
        return replace(request, features=features) if any(features) else request

    def stream(self, files: Iterable[Input], options: CallOptions) -> Iterator[BatchRequest]:
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
            yield replace(self.of(inputs, part), first=first)
            first += len(inputs)


def _looked_up(
    model: PrefixLM,
    users: UserLookup,
    options: CallOptions,
    values: list[Input],
    *,
    texts: list[dict[str, Texts]],
) -> tuple[list[dict[str, FeatureRow]], list[Input], list[dict[str, Texts]]]:
    """Features that the store has for each input, the inputs without their users, and the texts without those."""
    features, texts = encoded_histories(model, users, options, values, texts=texts)
    if users.key is not None:  # ids are looked up instead of read
        names, values = users_of(options, values)
        prefixes = users.features(model, names) or [{} for _ in values]
        features = [{**encoded, **own} for encoded, own in zip(features, prefixes, strict=True)]
        texts = [{name: text for name, text in row.items() if name != USER_BRANCH} for row in texts]
    return features, values, texts


def _one_each(option: str, texts: str | Sequence[str] | None, default: str, count: int) -> list[str]:
    """A text an input; InputError for another number of texts."""
    if texts is None or isinstance(texts, str):
        return [default if texts is None else texts] * count
    if len(texts) != count:
        raise InputError(f"{option}: {len(texts)} {option}s for {count} inputs; give one for all, or one an input")
    return list(texts)
