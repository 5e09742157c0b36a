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

from mmprefix import checkpoint
from mmprefix.batching import stack
from mmprefix.card import model_card
from mmprefix.devices import best_device, float_type, usable
from mmprefix.generation import GenerateOptions
from mmprefix.inputs import Input, by_branch, listed
from mmprefix.media import Source
from mmprefix.model import PrefixLM
from mmprefix.sources import folder
from mmprefix.types import Batch, Candidate, InputError

Results = TypeVar("Results")
_KEPT = ("prompt", "trained", "imported")  # settings that are saved as they were loaded


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
        self.model.to(None if device is None else usable(device))
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
        context: str | None = None,
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
        context: str | None = None,
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
        context: str | None = None,
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
        context: str | None = None,
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
        return texts if listed(files)[1] else texts[0]

    def candidates(
        self,
        files: Input | Sequence[Input],
        *,
        num_return: int = 3,
        prompt: str | Sequence[str] | None = None,
        context: str | None = None,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        batch_size: int = 16,
    ) -> list[list[Candidate]]:
        """For each input ``num_return`` texts and scores, the best first: by beams, or drawn if a seed is given."""
        if context is not None:
            raise InputError("context: this model was trained without one; leave it out")
        if num_beams is None and seed is None and not self.options.sample and num_return > self.options.num_beams:
            num_beams = num_return
        options = self._options(num_beams=num_beams, max_new_tokens=max_new_tokens, seed=seed, num_return=num_return)

        def write(batch: Batch) -> list[list[Candidate]]:
            return self.model.generate(batch, options)

        inputs, _ = listed(files)
        return self._batched(inputs, [[] for _ in inputs], prompt, batch_size, write)

    def score(
        self,
        files: Input | Sequence[Input],
        texts: str | Sequence[str],
        *,
        prompt: str | Sequence[str] | None = None,
        batch_size: int = 16,
    ) -> list[float]:
        """The total log-probability of each text for its input (of each text, where one input is given)."""

        def score(batch: Batch) -> list[list[float]]:
            return self.model.decoder.score(self.model.start(batch), batch.prompts, batch.targets)

        inputs, _ = listed(files)
        said = [texts] if isinstance(texts, str) else list(texts)
        if len(inputs) != len(said) and (len(inputs) > 1 or not said):
            raise InputError(f"score: {len(inputs)} inputs and {len(said)} texts; give one text an input")
        groups = [said] if len(inputs) == 1 else [[text] for text in said]
        return [value for found in self._batched(inputs, groups, prompt, batch_size, score) for value in found]

    def save(self, directory: str | Path) -> None:
        """Writes the model directory: recipe, trained tensors, model card. See ``mmprefix.load``."""
        settings = {"generate": asdict(self.options), **{k: v for k, v in self.settings.items() if k in _KEPT}}
        checkpoint.save(self.model, directory, settings, model_card(self.model, settings))

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
        size: int,
        compute: Callable[[Batch], list[Results]],
    ) -> list[Results]:
        """``compute`` over batches of inputs of one kind and like length; results in the inputs' order."""
        if size < 1:
            raise InputError(f"batch_size {size}: give a number from 1 on")
        prompts = self._prompts(prompt, len(inputs))
        kinds = {name: self.model.encoder(name).media for name in self.model.encoders}
        read = [by_branch(value, kinds) for value in inputs]
        found: dict[int, Results] = {}
        for start in range(0, len(read), size * 16):  # only so many decoded files are held at once
            window = range(start, min(start + size * 16, len(read)))
            tensors = {i: self._preprocess(read[i]) for i in window}
            order = sorted(window, key=lambda i: (list(tensors[i]), [t.shape[-1] for t in tensors[i].values()]))
            for _, alike in groupby(order, key=lambda i: list(tensors[i])):
                rows = list(alike)
                for chunk in (rows[at : at + size] for at in range(0, len(rows), size)):
                    media = {name: stack([tensors[i][name] for i in chunk]) for name in tensors[chunk[0]]}
                    said = [texts[i] for i in chunk]
                    batch = Batch(media, [prompts[i] for i in chunk], said, [""] * len(chunk), [str(i) for i in chunk])
                    with torch.inference_mode():
                        found.update(zip(chunk, compute(batch.to(self.device)), strict=True))
        return [found[i] for i in range(len(inputs))]

    def _preprocess(self, sources: dict[str, Source]) -> dict[str, torch.Tensor]:
        """Sources by branch name → waveforms (S,) and pictures (3 Y X), in the order of the names."""
        return {name: self.model.encoder(name).preprocess(sources[name], 0.0, None) for name in sorted(sources)}

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
    directory = place if place.exists() else folder(str(source), revision)
    target = usable(device or best_device())
    wanted = float_type(dtype, target)
    model, saved = checkpoint.load(directory, parts)
    known = {field.name for field in fields(GenerateOptions)}
    chosen = cast(dict[str, Any], saved.get("generate") or {})
    options = GenerateOptions(**{k: v for k, v in chosen.items() if k in known})
    return Predictor(model, options, saved).to(target, wanted)
