"""The inference API: load a saved model, give it files or values in memory, get text.

model = mmprefix.load("runs/quickstart/model")
model("dog.wav")                      # one input, one text
model(["a.jpg", "b.jpg"])             # many: batched, in order, equal to one at a time
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast, overload

import torch
from torch import nn

from mmprefix import saved_model
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.inference import tasks
from mmprefix.inference.batched import BatchRequest, run_batched
from mmprefix.inference.inputs import Input, as_list, input_kinds
from mmprefix.inference.model_card import model_card
from mmprefix.model import PrefixLM
from mmprefix.saved_model import ModelSettings
from mmprefix.slu.questions import Framing
from mmprefix.slu.schema import Schema
from mmprefix.trust.modules import allow_modules
from mmprefix.types import Batch, Candidate
from mmprefix.weights.devices import best_device, default_dtype, require_device
from mmprefix.weights.source import resolve_folder


class CallOptions(TypedDict, total=False):
    """Keyword arguments of every call on inputs.

    ``prompt`` (one for all, or one an input) stands before the text; by default the one trained with. ``context`` is
    what a model reads beside its input, such as a transcript. ``batch_size``: inputs at once, by default 16.
    """

    prompt: str | Sequence[str] | None
    context: str | Sequence[str] | None
    batch_size: int


class GenerateOverrides(CallOptions, total=False):
    """Keyword arguments of a call that writes: decoding other than the model's own.

    ``num_beams`` above 1 searches with beams; a ``seed`` asks for sampling. ``max_new_tokens``: longest text.
    """

    num_beams: int | None
    max_new_tokens: int | None
    seed: int | None


class Predictor:
    """A trained model, ready to write. Calls may come from several threads: nothing is changed by one.

    Inputs are paths, ``archive.zip::member``, bytes, PIL images, ``Waveform(values, rate)`` with NumPy or torch values,
    or dictionaries of those by branch name where a model reads several at once.
    """

    def __init__(self, model: PrefixLM, settings: ModelSettings = ModelSettings()) -> None:  # noqa: B008 (frozen)
        self.model, self.settings = model.eval(), settings

    @property
    def options(self) -> GenerateOptions:
        """Decoding where a call says nothing else."""
        return self.settings.generate

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Predictor:
        """Moves the model, and makes encoders and decoder compute in ``dtype`` (mappers stay in float32).

        Parts that take no ``dtype`` stay as they are. Raises InputError for a device that this machine does not have.
        """
        self.model.to(None if device is None else require_device(device))
        if dtype is not None:
            for part in self.model.frozen_parts.values():
                if "dtype" in part.init_args:
                    cast(nn.Module, part).to(dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of input (image, audio, signals) by the name that a dictionary of inputs uses."""
        return input_kinds(self.model)

    @overload
    def __call__(self, files: Input, *, num_return: Literal[1] = 1, **overrides: Unpack[GenerateOverrides]) -> str: ...

    @overload
    def __call__(
        self, files: Sequence[Input], *, num_return: Literal[1] = 1, **overrides: Unpack[GenerateOverrides]
    ) -> list[str]: ...

    @overload
    def __call__(
        self, files: Input | Sequence[Input], *, num_return: int = 1, **overrides: Unpack[GenerateOverrides]
    ) -> Any: ...

    def __call__(
        self, files: Input | Sequence[Input], *, num_return: int = 1, **overrides: Unpack[GenerateOverrides]
    ) -> Any:
        """One text an input: a string for one input, a list in the same order for a list.

        ``overrides``: prompt, context, num_beams, max_new_tokens, seed, batch_size; see ``GenerateOverrides``. With
        ``num_return`` above 1 each string becomes a list of so many, the best first (see ``candidates``).
        Raises InputError for an input that cannot be read, by name.
        """
        rows = self.candidates(files, num_return=num_return, **overrides)
        texts = [[candidate.text for candidate in row] if num_return > 1 else row[0].text for row in rows]
        return texts if as_list(files)[1] else texts[0]

    def candidates(
        self, files: Input | Sequence[Input], *, num_return: int = 3, **overrides: Unpack[GenerateOverrides]
    ) -> list[list[Candidate]]:
        """For each input ``num_return`` texts and scores, the best first: by beams, or sampled if a seed is given.

        ``overrides``: prompt, context, num_beams, max_new_tokens, seed, batch_size; see ``GenerateOverrides``.
        """
        options = self._decoding(num_return, overrides)

        def compute(batch: Batch) -> list[list[Candidate]]:
            return self.model.generate(batch, options)

        return run_batched(self.model, self._request(as_list(files)[0], overrides), compute)

    def score(
        self, files: Input | Sequence[Input], texts: str | Sequence[str], **options: Unpack[CallOptions]
    ) -> list[float]:
        """The total log-probability of each text for its input (of each text, where one input is given).

        ``options``: prompt, context, batch_size; see ``CallOptions``.
        """

        def compute(batch: Batch) -> list[list[float]]:
            return self.model.decoder.score(self.model.prefill(batch), self.model.prompts(batch), batch.targets)

        _refuse_unknown(options, CallOptions)
        inputs, _ = as_list(files)
        targets = [texts] if isinstance(texts, str) else list(texts)
        if len(inputs) != len(targets) and (len(inputs) > 1 or not targets):
            raise InputError(f"score: {len(inputs)} inputs and {len(targets)} texts; give one text an input")
        groups = [targets] if len(inputs) == 1 else [[text] for text in targets]
        scores = run_batched(self.model, self._request(inputs, options, groups), compute)
        return [value for row in scores for value in row]

    def choose(
        self, files: Input | Sequence[Input] | None, choices: Sequence[str], **options: Unpack[CallOptions]
    ) -> list[dict[str, float]]:
        """For each input the log-probability of each of ``choices``, given that it is one of them.

        ``options``: prompt, context, batch_size; see ``CallOptions``.
        """
        _refuse_unknown(options, CallOptions)
        inputs = _inputs(files, options.get("context"))
        return tasks.choose(self.model, self._request(inputs, options), choices)

    def detect(
        self,
        files: Input | Sequence[Input] | None = None,
        *,
        answers: tuple[str, str] | None = None,
        context: str | Sequence[str] | None = None,
        batch_size: int = 16,
    ) -> list[float]:
        """For each input the log odds of the first of two answers against the second, by default those trained with.

        An input may have any subset of what the model reads: a dictionary by branch name, a file, None where there is
        a ``context`` alone. Raises InputError for a model without answers of its own where none are given.
        """
        words = tasks.answers_of(self.settings, answers)
        request = self._request(_inputs(files, context), {"context": context, "batch_size": batch_size})
        return tasks.detect(self.model, request, words)

    def understand(
        self,
        files: Input | Sequence[Input] | None = None,
        *,
        schema: str | Path | Schema | None = None,
        framing: Framing | None = None,
        context: str | Sequence[str] | None = None,
        batch_size: int = 16,
    ) -> Any:
        """Intent and slots: {"intent", "slots", "scores"} for one input, a list of those for a list of inputs.

        ``schema``: a file, a shipped name or a ``Schema``; by default the one trained with. All its questions continue
        one prefill of the input. Questions with choices are answered by the likeliest of them, others freely.
        ``context`` is the transcript, for models that read one. See ``mmprefix.slu.questions.parse_answers`` for the
        result; the score of a free answer is that of the search, by default the mean log-probability of its tokens.
        """
        wanted, framing = tasks.schema_of(self.settings, schema), tasks.framing_of(self.settings, framing)
        request = self._request(_inputs(files, context), {"context": context, "batch_size": batch_size})
        rows = tasks.understand(self.model, request, wanted, framing=framing, options=self.options)
        several = as_list(files)[1] if files is not None else not isinstance(context, str)
        return rows if several else rows[0]

    def save(self, directory: str | Path) -> None:
        """Writes the model directory: recipe, trained tensors, model card. See ``mmprefix.load``."""
        model = self.model.merged()
        saved_model.save(model, directory, self.settings, model_card(model, self.settings))

    def push_to_hub(self, repo: str, private: bool = False) -> str:
        """Saves and uploads to the hub repository ``repo`` (made if it is not there); returns its address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi()
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "model")
            url = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=str(Path(folder) / "model"))
        return str(url)

    def _decoding(self, num_return: int, overrides: GenerateOverrides) -> GenerateOptions:
        """The model's own options with those of a call; what belongs to another way of searching gives way to them."""
        _refuse_unknown(overrides, GenerateOverrides)
        own, beams, seed = self.options, overrides.get("num_beams"), overrides.get("seed")
        if beams is None and seed is None and not own.sample and num_return > own.num_beams:
            beams = num_return
        length = overrides.get("max_new_tokens")
        changes: dict[str, Any] = {"num_return": num_return} | ({} if length is None else {"max_new_tokens": length})
        if seed is not None:
            changes |= {"sample": True, "num_beams": 1 if beams is None else beams, "ranking": "default", "seed": seed}
        elif beams is not None:
            changes |= {"sample": False, "top_p": 1.0, "seed": None, "num_beams": beams}
            changes |= {"temperature": 1.0} if own.sample or beams == 1 else {}
            changes |= {"ranking": "default"} if beams == 1 else {}
        return replace(own, **changes)

    def _request(
        self, inputs: list[Input], options: CallOptions, targets: list[list[str]] | None = None
    ) -> BatchRequest:
        prompts = self._prompts(options.get("prompt"), len(inputs))
        contexts = self._contexts(options.get("context"), len(inputs))
        return BatchRequest(inputs, prompts, contexts, targets or [[] for _ in inputs], options.get("batch_size", 16))

    def _prompts(self, prompt: str | Sequence[str] | None, count: int) -> list[str]:
        if prompt is None or isinstance(prompt, str):
            return [(self.settings.prompt or "") if prompt is None else prompt] * count
        if len(prompt) != count:
            raise InputError(f"prompt: {len(prompt)} prompts for {count} inputs; give one for all, or one an input")
        return list(prompt)

    def _contexts(self, context: str | Sequence[str] | None, count: int) -> list[str]:
        if context is None:
            return [""] * count
        if not self.model.reads_text:
            raise InputError("context: this model was trained without one; leave it out")
        contexts = [context] * count if isinstance(context, str) else list(context)
        if len(contexts) != count:
            raise InputError(f"context: {len(contexts)} contexts for {count} inputs; give one for all, or one an input")
        return contexts


def _inputs(files: Input | Sequence[Input] | None, context: str | Sequence[str] | None) -> list[Input]:
    """The inputs as a list; without files, an input without any for each context."""
    if files is not None:
        return as_list(files)[0]
    if context is None:
        raise InputError("no input given; give a file, a list of files, or a context")
    return [{} for _ in ([context] if isinstance(context, str) else context)]


def _refuse_unknown(options: CallOptions, allowed: type[CallOptions]) -> None:
    """Python itself does not hold a call to the names of a TypedDict."""
    for name in options.keys() - allowed.__annotations__.keys():
        raise TypeError(f"unexpected keyword argument {name!r}; there are {', '.join(allowed.__annotations__)}")


def load(
    source: str | Path,
    *,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    parts: dict[str, str] | None = None,
    revision: str | None = None,
    allow: Sequence[str] = (),
) -> Predictor:
    """A Predictor from a saved directory or a hub repository.

    ``device``: "cuda" where there is one, else "mps", else "cpu". ``dtype`` of the frozen parts: bfloat16 on a GPU that
    has it, else float32. ``parts``: where a frozen part is now, by branch name or "decoder", if it has moved.
    ``allow``: modules besides this package whose classes the model may name; their code runs.
    Raises InputError for a directory that is no model, damaged files, and frozen parts other than it was trained with.
    """
    path = Path(source).expanduser()
    directory = path if path.exists() else resolve_folder(str(source), revision)
    target = require_device(device or best_device())
    with allow_modules(allow):
        model, settings = saved_model.load(directory, parts)
    return Predictor(model, settings).to(target, default_dtype(dtype, target))
