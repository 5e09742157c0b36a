"""The inference API: load a saved model, give it files or values in memory, get text.

model = mmprefix.load("runs/quickstart/model")
model("dog.wav")                      # one input, one text
model(["a.jpg", "b.jpg"])             # many: batched, in order, equal to one at a time
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

import torch
from torch import nn

from mmprefix import saved_model
from mmprefix.data.collate import pad_media
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.inference.inputs import Input, InputSource, as_list, assign_to_branches, source_and_span
from mmprefix.inference.model_card import model_card
from mmprefix.inference.prefetch import prefetch
from mmprefix.model import PrefixLM
from mmprefix.slu.answering import answer_batch
from mmprefix.slu.questions import Framing, build_questions
from mmprefix.slu.schema import Schema, read_schema
from mmprefix.types import Batch, Candidate
from mmprefix.weights.devices import best_device, default_dtype, require_device
from mmprefix.weights.source import resolve_folder

Results = TypeVar("Results")
_KEPT = ("prompt", "trained", "imported", "schema", "framing", "answers")  # settings that are saved as they were loaded
_AHEAD = 8  # batches whose inputs are decoded, and sorted by length, together


class Predictor:
    """A trained model, ready to write. Calls may come from several threads: nothing is changed by one.

    Inputs are paths, ``archive.zip::member``, bytes, PIL images, ``Waveform(values, rate)`` with NumPy or torch values,
    or dictionaries of those by branch name where a model reads several at once.
    """

    def __init__(self, model: PrefixLM, options: GenerateOptions, settings: dict[str, Any] | None = None) -> None:
        self.model, self.options = model.eval(), options
        self.settings = settings or {}

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
        """Where the model is."""
        return next(self.model.parameters()).device

    @overload
    def __call__(
        self,
        files: Input,
        *,
        prompt: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        num_return: Literal[1] = 1,
        seed: int | None = None,
        batch_size: int = 16,
    ) -> str: ...

    @overload
    def __call__(
        self,
        files: Sequence[Input],
        *,
        prompt: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        num_return: Literal[1] = 1,
        seed: int | None = None,
        batch_size: int = 16,
    ) -> list[str]: ...

    @overload
    def __call__(
        self,
        files: Input | Sequence[Input],
        *,
        prompt: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        num_return: int = 1,
        seed: int | None = None,
        batch_size: int = 16,
    ) -> Any: ...

    def __call__(
        self,
        files: Input | Sequence[Input],
        *,
        prompt: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        num_return: int = 1,
        seed: int | None = None,
        batch_size: int = 16,
    ) -> Any:
        """One text an input: a string for one input, a list in the same order for a list.

        ``prompt`` (one for all, or one an input) stands before the text. A ``seed`` asks for sampling. With
        ``num_return`` above 1 each string becomes a list of so many, the best first (see ``candidates``).
        Raises InputError for an input that cannot be read, by name.
        """
        found = self.candidates(
            files,
            num_return=num_return,
            prompt=prompt,
            context=context,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            seed=seed,
            batch_size=batch_size,
        )
        texts = [[c.text for c in one] if num_return > 1 else one[0].text for one in found]
        return texts if as_list(files)[1] else texts[0]

    def candidates(
        self,
        files: Input | Sequence[Input],
        *,
        num_return: int = 3,
        prompt: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        batch_size: int = 16,
    ) -> list[list[Candidate]]:
        """For each input ``num_return`` texts and scores, the best first: by beams, or drawn if a seed is given."""
        if num_beams is None and seed is None and not self.options.sample and num_return > self.options.num_beams:
            num_beams = num_return
        options = self._options(num_beams=num_beams, max_new_tokens=max_new_tokens, seed=seed, num_return=num_return)

        def write(batch: Batch) -> list[list[Candidate]]:
            return self.model.generate(batch, options)

        inputs, _ = as_list(files)
        return self._batched(inputs, [[] for _ in inputs], prompt, context, batch_size, write)

    def score(
        self,
        files: Input | Sequence[Input],
        texts: str | Sequence[str],
        *,
        prompt: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        batch_size: int = 16,
    ) -> list[float]:
        """The total log-probability of each text for its input (of each text, where one input is given)."""

        def score(batch: Batch) -> list[list[float]]:
            return self.model.decoder.score(self.model.prefill(batch), self.model.prompts(batch), batch.targets)

        inputs, _ = as_list(files)
        said = [texts] if isinstance(texts, str) else list(texts)
        if len(inputs) != len(said) and (len(inputs) > 1 or not said):
            raise InputError(f"score: {len(inputs)} inputs and {len(said)} texts; give one text an input")
        groups = [said] if len(inputs) == 1 else [[text] for text in said]
        return [value for found in self._batched(inputs, groups, prompt, context, batch_size, score) for value in found]

    def choose(
        self,
        files: Input | Sequence[Input] | None,
        choices: Sequence[str],
        *,
        prompt: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        batch_size: int = 16,
    ) -> list[dict[str, float]]:
        """For each input the log-probability of each of ``choices``, given that it is one of them."""
        allowed = [choices] if isinstance(choices, str) else list(choices)
        if len(allowed) < 2:
            raise InputError(f"choices {allowed}: give two or more")

        def weigh(batch: Batch) -> list[dict[str, float]]:
            prompts = self.model.prompts(batch)
            opened = self.model.decoder.append_prompts(self.model.prefill(batch), prompts)
            found = cast(list[list[float]], self.model.decoder.score_choices(opened, prompts, allowed).tolist())  # pyright: ignore
            return [dict(zip(allowed, row, strict=True)) for row in found]

        inputs = self._inputs(files, context)
        return self._batched(inputs, [[] for _ in inputs], prompt, context, batch_size, weigh)

    def detect(
        self,
        files: Input | Sequence[Input] | None = None,
        *,
        context: str | Sequence[str] | None = None,
        answers: tuple[str, str] | None = None,
        batch_size: int = 16,
    ) -> list[float]:
        """For each input the log odds of the first of two answers against the second, by default those trained with.

        An input may have any subset of what the model reads: a dictionary by branch name, a file, None where there is
        a ``context`` alone. Raises InputError for a model without answers of its own where none are given.
        """
        words = list(answers or self.settings.get("answers") or [])
        if len(words) != 2:
            raise InputError("answers: this model has none of its own; give two words, the first for what is detected")
        found = self.choose(files, words, context=context, batch_size=batch_size)
        return [row[words[0]] - row[words[1]] for row in found]

    def understand(
        self,
        files: Input | Sequence[Input] | None = None,
        *,
        schema: str | Path | Schema | None = None,
        framing: Framing | None = None,
        context: str | Sequence[str] | None = None,
        batch_size: int = 16,
    ) -> Any:
        """What is meant: {"intent", "slots", "scores"} for one input, a list of those for a list of inputs.

        ``schema``: a file, a shipped name or a ``Schema``; by default the one trained with. Each of its questions is
        asked once all that is heard or read has been taken in once. Questions with choices are answered by the
        likeliest of them, others freely. ``context`` is the transcript, for models that read one. See
        ``mmprefix.slu.questions.understand`` for the result; the score of a free answer is that of the search, by default
        the mean log-probability of its tokens.
        """
        given = schema if schema is not None else self.settings.get("schema")
        if given is None:
            raise InputError("schema: this model was trained without one; give a file or the name of a shipped schema")
        known = given if isinstance(given, Schema) else read_schema(given)
        framing = framing or cast(Framing, self.settings.get("framing") or "choice")
        questions = build_questions(known, framing)

        def answer(batch: Batch) -> list[dict[str, Any]]:
            return answer_batch(self.model, batch, known, questions, self.options)

        inputs = self._inputs(files, context)
        found = self._batched(inputs, [[] for _ in inputs], None, context, batch_size, answer)
        many = as_list(files)[1] if files is not None else not isinstance(context, str)
        return found if many else found[0]

    def _inputs(self, files: Input | Sequence[Input] | None, context: str | Sequence[str] | None) -> list[Input]:
        """The inputs as a list; as many without any file as there are contexts, where no files are given."""
        if files is not None:
            return as_list(files)[0]
        if context is None:
            raise InputError("no input given; give a file, a list of files, or a context")
        return [{} for _ in ([context] if isinstance(context, str) else context)]

    def save(self, directory: str | Path) -> None:
        """Writes the model directory: recipe, trained tensors, model card. See ``mmprefix.load``."""
        settings = {"generate": asdict(self.options), **{k: v for k, v in self.settings.items() if k in _KEPT}}
        model = self.model.merged()
        saved_model.save(model, directory, settings, model_card(model, settings))

    def push_to_hub(self, repo: str, private: bool = False) -> str:
        """Saves and uploads to the hub repository ``repo`` (made if it is not there); returns its address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi()
        with tempfile.TemporaryDirectory() as place:
            self.save(Path(place) / "model")
            url = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=str(Path(place) / "model"))
        return str(url)

    def _options(self, **changes: int | None) -> GenerateOptions:
        """The model's own options with ``changes``; what belongs to another way of searching gives way to them."""
        given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        if "seed" in given:
            given = {"sample": True, "num_beams": 1, "ranking": "default", **given}
        elif "num_beams" in given:
            given = {"sample": False, "top_p": 1.0, "seed": None, **given}
            if self.options.sample or given["num_beams"] == 1:
                given = {"temperature": 1.0, **given}
            if given["num_beams"] == 1:
                given = {"ranking": "default", **given}
        return replace(self.options, **given)

    def _batched(
        self,
        inputs: list[Input],
        texts: list[list[str]],
        prompt: str | Sequence[str] | None,
        context: str | Sequence[str] | None,
        size: int,
        compute: Callable[[Batch], list[Results]],
    ) -> list[Results]:
        """``compute`` over batches of inputs of one kind and like length; results in the inputs' order.

        So many batches' files are decoded at once, the next ones while the model computes.
        """
        if size < 1:
            raise InputError(f"batch_size {size}: give a number from 1 on")
        prompts = self._prompts(prompt, len(inputs))
        contexts = self._contexts(context, len(inputs))
        read = [
            self._read(value, told, number) for number, (value, told) in enumerate(zip(inputs, contexts, strict=True))
        ]

        def decode(window: range) -> dict[int, dict[str, torch.Tensor]]:
            wanted = {i: {n: s for n, s in read[i].items() if n in self.model.encoders} for i in window}
            return {i: self._preprocess(sources) for i, sources in wanted.items()}

        found: dict[int, Results] = {}
        step = size * _AHEAD
        windows = [range(start, min(start + step, len(read))) for start in range(0, len(read), step)]
        for window, tensors in zip(windows, prefetch(decode, windows), strict=True):
            self._transcribe(contexts, {i: read[i]["audio"] for i in window if "audio" in read[i] and not contexts[i]})
            order = sorted(window, key=lambda i: (list(tensors[i]), [t.shape[-1] for t in tensors[i].values()]))
            for _, alike in groupby(order, key=lambda i: list(tensors[i])):
                rows = list(alike)
                for chunk in (rows[at : at + size] for at in range(0, len(rows), size)):
                    media = {name: pad_media([tensors[i][name] for i in chunk]) for name in tensors[chunk[0]]}
                    said, told = [texts[i] for i in chunk], [contexts[i] for i in chunk]
                    batch = Batch(media, [prompts[i] for i in chunk], said, told, [str(i) for i in chunk])
                    with torch.inference_mode():
                        found.update(zip(chunk, compute(batch.to(self.device)), strict=True))
        return [found[i] for i in range(len(inputs))]

    @property
    def kinds(self) -> dict[str, str]:
        """What can be given by name: image, audio or signals of each branch, and the sound that is transcribed."""
        kinds: dict[str, str] = {name: self.model.encoder(name).input_kind for name in self.model.encoders}
        return kinds | ({} if self.model.transcriber is None else {"audio": "audio"})

    def _read(self, value: Input, context: str, number: int) -> dict[str, InputSource]:
        """What is given of one input by branch name; nothing where a context stands alone."""
        if not isinstance(value, dict) or value or not self.model.reads_text:
            return assign_to_branches(value, self.kinds)
        if not context:
            raise InputError(f"input {number + 1}: has neither a file nor a context; give one of them")
        return {}

    def _preprocess(self, sources: dict[str, InputSource]) -> dict[str, torch.Tensor]:
        """Sources by branch name → waveforms (S,) and pictures (3 Y X), in the order of the names."""
        return {name: self.model.encoder(name).preprocess(*source_and_span(sources[name])) for name in sorted(sources)}

    def _contexts(self, context: str | Sequence[str] | None, count: int) -> list[str]:
        if context is None:
            return [""] * count
        if not self.model.reads_text:
            raise InputError("context: this model was trained without one; leave it out")
        given = [context] * count if isinstance(context, str) else list(context)
        if len(given) != count:
            raise InputError(f"context: {len(given)} contexts for {count} inputs; give one for all, or one an input")
        return given

    def _transcribe(self, contexts: list[str], sounds: dict[int, InputSource], size: int = 8) -> None:
        """Puts what is said in ``sounds``, by place, into ``contexts``, where this model has a transcriber."""
        heard = self.model.transcriber
        if heard is None or not sounds:
            return
        values = {i: heard.preprocess(*source_and_span(source)) for i, source in sounds.items()}
        order = sorted(values, key=lambda i: len(values[i]))
        for chunk in (order[at : at + size] for at in range(0, len(order), size)):
            for i, one in zip(chunk, heard(pad_media([values[i] for i in chunk]).to(self.device)), strict=True):
                contexts[i] = one.text

    def _prompts(self, prompt: str | Sequence[str] | None, count: int) -> list[str]:
        if prompt is None or isinstance(prompt, str):
            return [prompt if prompt is not None else str(self.settings.get("prompt") or "")] * count
        if len(prompt) != count:
            raise InputError(f"prompt: {len(prompt)} prompts for {count} inputs; give one for all, or one an input")
        return list(prompt)


def load(
    source: str | Path,
    *,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    parts: dict[str, str] | None = None,
    revision: str | None = None,
) -> Predictor:
    """A Predictor from a saved directory or a hub repository.

    ``device``: "cuda" where there is one, else "mps", else "cpu". ``dtype`` of the frozen parts: bfloat16 on a GPU that
    has it, else float32. ``parts`` says where a frozen part is now, by branch name or "decoder", if it has moved.
    Raises InputError for a directory that is no model, damaged files, and frozen parts other than it was trained with.
    """
    place = Path(source).expanduser()
    directory = place if place.exists() else resolve_folder(str(source), revision)
    target = require_device(device or best_device())
    wanted = default_dtype(dtype, target)
    model, saved = saved_model.load(directory, parts)
    known = {field.name for field in fields(GenerateOptions)}
    chosen = cast(dict[str, Any], saved.get("generate") or {})
    options = GenerateOptions(**{k: v for k, v in chosen.items() if k in known})
    return Predictor(model, options, saved).to(target, wanted)
