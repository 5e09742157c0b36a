"""The inference API: load a saved model, give it files or values in memory, get text.

model = mmprefix.load("runs/quickstart/model")
model("dog.wav")                      # one input, one text
model(["a.jpg", "b.jpg"])             # many: batched, in order, equal to one at a time
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from torch import nn

from mmprefix import checkpoint
from mmprefix.batching import stack
from mmprefix.card import model_card
from mmprefix.generation import GenerateOptions
from mmprefix.media import Source, Waveform
from mmprefix.model import PrefixLM
from mmprefix.sources import hub_snapshot
from mmprefix.types import Batch, Candidate, InputError, Media

Input = Source | dict[str, Source]  # a file or a value in memory; or several by branch name
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}


class Predictor:
    """A trained model, ready to write. Calls may come from several threads: nothing is changed by one.

    Inputs are paths, ``archive.zip::member``, bytes, PIL images, ``Waveform(values, rate)`` with NumPy or torch values,
    or dictionaries of those by branch name where a model reads several at once.
    """

    def __init__(self, model: PrefixLM, options: GenerateOptions, settings: dict[str, Any] | None = None) -> None:
        self.model, self.options = model.eval(), options
        self.settings = settings or {}

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Predictor:
        """Moves the model, and makes encoders and decoder compute in ``dtype`` (mappers stay in float32)."""
        self.model.to(device)
        if dtype is not None:
            for part in self.model.frozen_parts.values():
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
        seed: int | None = None,
        batch_size: int = 16,
    ) -> str: ...

    @overload
    def __call__(
        self,
        files: list[Input],
        *,
        prompt: str | Sequence[str] | None = None,
        context: str | None = None,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        batch_size: int = 16,
    ) -> list[str]: ...

    def __call__(
        self,
        files: Any,
        *,
        prompt: str | Sequence[str] | None = None,
        context: str | None = None,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        batch_size: int = 16,
    ) -> Any:
        """One text an input: a string for one input, a list in the same order for a list.

        ``prompt`` (one for all, or one an input) stands before the text. A ``seed`` asks for sampling.
        Raises InputError for an input that cannot be read, by name.
        """
        inputs = _listed(files)
        _no_context(context)
        options = self._options(num_beams=num_beams, max_new_tokens=max_new_tokens, seed=seed)
        texts = [found[0].text for found in self._write(inputs, prompt, options, batch_size)]
        return texts if isinstance(files, list | tuple) and not isinstance(files, Waveform) else texts[0]

    def candidates(
        self,
        files: Any,
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
        _no_context(context)
        if num_beams is None and seed is None and not self.options.sample and num_return > self.options.num_beams:
            num_beams = num_return
        options = self._options(num_beams=num_beams, max_new_tokens=max_new_tokens, seed=seed, num_return=num_return)
        return self._write(_listed(files), prompt, options, batch_size)

    def score(
        self,
        files: Any,
        texts: str | Sequence[str],
        *,
        prompt: str | Sequence[str] | None = None,
        batch_size: int = 16,
    ) -> list[float]:
        """The total log-probability of each text for its input (of each text, where one input is given)."""
        inputs, said = _listed(files), [texts] if isinstance(texts, str) else list(texts)
        if len(inputs) == 1 and len(said) > 1:
            return self._score(inputs, [said], prompt, batch_size)[0]
        if len(inputs) != len(said):
            raise InputError(f"score: {len(inputs)} inputs and {len(said)} texts; give one text an input")
        return [found[0] for found in self._score(inputs, [[text] for text in said], prompt, batch_size)]

    def save(self, directory: str | Path) -> None:
        """Writes the model directory: recipe, trained tensors, model card. See ``mmprefix.load``."""
        settings = {"generate": asdict(self.options), **{k: v for k, v in self.settings.items() if k == "trained"}}
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

    def _options(self, **changes: Any) -> GenerateOptions:
        given = {name: value for name, value in changes.items() if value is not None}
        base = self.options
        if "seed" in given:
            given = {"sample": True, "num_beams": 1, **given}
            base = replace(base, num_beams=1, num_return=1, ranking="default", temperature=1.0)
        elif given.get("num_beams") == 1:
            base = replace(base, num_return=1, ranking="default", sample=False, temperature=1.0, top_p=1.0, num_beams=1)
        elif "num_beams" in given:
            base = replace(base, sample=False, top_p=1.0, seed=None, temperature=1.0, num_return=1)
        return replace(base, **given)

    def _write(
        self,
        inputs: list[Input],
        prompt: str | Sequence[str] | None,
        options: GenerateOptions,
        batch_size: int,
    ) -> list[list[Candidate]]:
        def write(batch: Batch) -> list[list[Candidate]]:
            return self.model.generate(batch, options)

        return self._batched(inputs, [[] for _ in inputs], prompt, batch_size, write)

    def _score(
        self, inputs: list[Input], texts: list[list[str]], prompt: str | Sequence[str] | None, batch_size: int
    ) -> list[list[float]]:
        def score(batch: Batch) -> list[list[float]]:
            return self.model.decoder.score(self.model.start(batch), batch.prompts, batch.targets)

        return self._batched(inputs, texts, prompt, batch_size, score)

    def _batched(self, inputs: list[Input], texts: list[list[str]], prompt: Any, size: int, compute: Any) -> list[Any]:
        """``compute`` over batches of inputs of one kind and like length; results in the inputs' order."""
        prompts = self._prompts(prompt, len(inputs))
        found: list[Any] = [None] * len(inputs)
        read = [self._named(value) for value in inputs]
        for start in range(0, len(read), size * 16):  # only so many decoded files are held at once
            window = range(start, min(start + size * 16, len(read)))
            tensors = {i: {n: self._preprocess(n, v) for n, v in read[i].items()} for i in window}
            order = sorted(window, key=lambda i: [(n, t.shape[-1]) for n, t in sorted(tensors[i].items())])
            while order:
                kind = tensors[order[0]].keys()
                chunk = [i for i in order[:size] if tensors[i].keys() == kind]
                order = order[len(chunk) :]
                media = {n: self._media(n, [tensors[i][n] for i in chunk]) for n in kind}
                empty = [""] * len(chunk)
                names = [str(i) for i in chunk]
                batch = Batch(media, [prompts[i] for i in chunk], [texts[i] for i in chunk], empty, names)
                with torch.inference_mode():
                    results = compute(batch.to(self.device))
                for i, result in zip(chunk, results, strict=True):
                    found[i] = result
        return found

    def _prompts(self, prompt: str | Sequence[str] | None, count: int) -> list[str]:
        if prompt is None or isinstance(prompt, str):
            return [prompt if prompt is not None else str(self.settings.get("prompt") or "")] * count
        if len(prompt) != count:
            raise InputError(f"prompt: {len(prompt)} prompts for {count} inputs; give one for all, or one an input")
        return list(prompt)

    def _preprocess(self, branch: str, value: Source) -> torch.Tensor:
        return self.model.encoder(branch).preprocess(value, 0.0, None)

    def _media(self, branch: str, tensors: list[torch.Tensor]) -> Media:
        media = stack(tensors)
        dtype = next((p.dtype for p in self.model.encoder(branch).parameters() if p.is_floating_point()), torch.float32)
        return Media(media.values.to(dtype), media.lengths)

    def _named(self, value: Input) -> dict[str, Source]:
        """The input by branch name, as the caller gave it or by its kind (picture or sound)."""
        if isinstance(value, dict):
            return cast(dict[str, Source], value)
        kinds = {name: self.model.encoder(name).media for name in self.model.encoders}
        if len(kinds) == 1:
            return {next(iter(kinds)): value}
        kind = _kind(value)
        fitting = [name for name, k in kinds.items() if k == kind]
        if len(fitting) != 1:
            have = ", ".join(f"{name} ({k})" for name, k in kinds.items())
            raise InputError(f"{_brief(value)}: this model reads {have}; give a dictionary by branch name")
        return {fitting[0]: value}


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
    directory = Path(source).expanduser()
    if not directory.exists():
        directory = hub_snapshot(str(source), revision)
    model, saved = checkpoint.load(directory, parts)
    known = {field.name for field in fields(GenerateOptions)}
    options = GenerateOptions(**{k: v for k, v in (saved.get("generate") or {}).items() if k in known})
    place = device or _best_device()
    fast = place.startswith("cuda") and torch.cuda.is_bf16_supported()
    kind = getattr(torch, dtype) if dtype else torch.bfloat16 if fast else None
    return Predictor(model, options, saved).to(place, kind)


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _listed(files: Any) -> list[Any]:
    many = isinstance(files, list | tuple) and not isinstance(files, Waveform)
    inputs = list(files) if many else [files]
    if not inputs:
        raise InputError("no input given; give a file, or a list of files")
    return inputs


def _no_context(context: str | None) -> None:
    if context is not None:
        raise InputError("context: this model was trained without one; leave it out")


def _kind(value: Source) -> str:
    """Whether a source is a picture or a sound: by its type, its name, or its first bytes."""
    if isinstance(value, Waveform):
        return "audio"
    if isinstance(value, str | Path):
        return "image" if Path(str(value)).suffix.lower() in _PICTURES else "audio"
    if not isinstance(value, bytes):
        return "image"
    starts = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
    return "image" if value.startswith(starts) or value[8:12] == b"WEBP" else "audio"


def _brief(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else type(value).__name__
