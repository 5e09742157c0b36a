"""The model card, saved beside the trained tensors: licence, parts, data, figures, samples, an example that runs."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import yaml

from mmprefix.encoders.base import Encoder
from mmprefix.media.kinds import KINDS
from mmprefix.model import PrefixLM
from mmprefix.saved_model import Captioning, Detection, ModelSettings, Understanding
from mmprefix.weights.part_places import portable

_FIGURES: dict[type, tuple[str, ...]] = {
    Captioning: ("loss", "bleu_1", "bleu_4", "rouge_l", "cider_d", "cider_d_shuffled", "exact_match", "distinct"),
    Understanding: ("loss", "exact_match"),
    Detection: ("loss", "eer", "threshold", "auc", "exact_match"),
}
_TAGS: dict[type, str] = {
    Captioning: "captioning",
    Understanding: "spoken-language-understanding",
    Detection: "speech-detection",
}
_PIPELINES = {  # kind of input → task of the model hub
    "image": "image-to-text",
    "video": "video-text-to-text",
    "audio": "automatic-speech-recognition",
}
_COUNTED: dict[type, str] = {Captioning: " (PTB-like tokens)", Understanding: ", each question counting once"}


def model_card(model: PrefixLM, settings: ModelSettings) -> str:
    """Markdown with a metadata header, from the model and the settings that are saved with it."""
    trained = model.trained.values()
    count, size = sum(t.numel() for t in trained), sum(t.numel() * t.element_size() for t in trained)
    parts = [
        f"| {name} | {type(part).__name__} | `{portable(part.identity.source)}` | "
        f"{part.identity.revision or 'a folder'} | `{part.identity.sha256[:16]}` |"
        for name, part in model.frozen_parts.items()
    ]
    lines = [
        "---",
        yaml.safe_dump(_metadata(model, settings), sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        "# A prefix mapper",
        "",
        f"{count:,} trained parameters ({size / 1e6:.2f} MB) between frozen parts:",
        "",
        "| part | class | source | revision | sha256 |",
        "|---|---|---|---|---|",
        *parts,
        "",
        "```python",
        "import mmprefix",
        "",
        'model = mmprefix.load("this directory")',
        _example(model, settings),
        "```",
        "",
        *_about(settings),
        *_terms(settings),
        *_results(settings),
        *_samples(settings),
    ]
    return "\n".join(lines)


def _metadata(model: PrefixLM, settings: ModelSettings) -> dict[str, Any]:
    """Front matter in the form of the model hub; its keys are those of ``huggingface_hub.ModelCardData``."""
    named = [part.identity for part in model.frozen_parts.values() if part.identity.revision]
    data: dict[str, Any] = {"library_name": "mmprefix", "pipeline_tag": _pipeline(model, settings)}
    data |= {"license": settings.license} if settings.license else {"license": "other", "license_name": "not-stated"}
    if settings.language:
        data["language"] = list(settings.language)
    if named:
        data["base_model"] = sorted({identity.source.removeprefix("hf-hub:") for identity in named})
    data["tags"] = ["mmprefix", "prefix-tuning", _TAGS[type(settings.task)]]
    figures = _shown(settings)
    if settings.trained and figures:
        task = {"type": data["pipeline_tag"], "name": _TAGS[type(settings.task)]}
        names = ", ".join(settings.trained.data) or "not recorded"
        dataset = {"type": "own", "name": names, "split": settings.trained.measured_on}
        metrics = [{"type": name.rsplit("/", 1)[-1], "name": name, "value": value} for name, value in figures.items()]
        results = [{"task": task, "dataset": dataset, "metrics": metrics}]
        data["model-index"] = [{"name": "a prefix mapper", "results": results}]
    return data


def _pipeline(model: PrefixLM, settings: ModelSettings) -> str:
    """Task of the model hub that is nearest to what the model reads and writes."""
    kinds = [model.encoder(name).input_kind for name in model.encoders]
    if isinstance(settings.task, Detection):
        return "audio-classification" if "audio" in kinds else "text-classification"
    if model.transcriber is not None:
        return "automatic-speech-recognition"
    return next((_PIPELINES[kind] for kind in kinds if kind in _PIPELINES), "text-generation")


def _example(model: PrefixLM, settings: ModelSettings) -> str:
    """A line that calls the model with everything that it can read."""
    files = {name: _example_input(model.encoder(name)) for name in model.encoders}
    if model.transcriber is not None:
        files["audio"] = KINDS["audio"].example(0)
    named = ", ".join(f'"{name}": {value}' for name, value in files.items())
    words = any(KINDS[model.encoder(name).input_kind].lists == "texts" for name in model.encoders)  # by branch name
    first = next(iter(files.values())) if len(files) == 1 and not words else f"{{{named}}}" if files else ""
    context = 'context="what was said"' if model.reads_text and model.transcriber is None else ""
    if isinstance(settings.task, Captioning):  # a file of any kind; an empty dictionary where the context stands alone
        file = first if words else files.get("audio") or next(iter(files.values()), "{}")
        return f"print(model({', '.join(filter(None, (file, context)))}))"
    arguments = ", ".join(filter(None, (first, context)))
    if isinstance(settings.task, Detection):
        return f"print(model.detect({arguments}))  # the log odds, in a list"
    return f"print(model.understand({arguments}))  # intent, slots and their scores"


def _example_input(encoder: Encoder) -> str:
    return KINDS[encoder.input_kind].example(encoder.pooled_dim)


def _about(settings: ModelSettings) -> list[str]:
    task = settings.task
    if isinstance(task, Understanding):
        name = task.schema.get("name", "its own") if isinstance(task.schema, dict) else task.schema
        return [f"Schema: {name}; intents are asked for by {task.framing or 'choice'}.", ""]
    if isinstance(task, Detection):
        first, second = task.answers
        return [f"Scores are the log odds of {first!r} against {second!r}; any subset of the inputs may be given.", ""]
    return []


def _results(settings: ModelSettings) -> list[str]:
    trained, imported = settings.trained, settings.imported
    lines = [f"Data: {', '.join(trained.data if trained else []) or 'not recorded'}.", ""]
    if imported:
        lines += [f"Imported from a checkpoint of {imported.system}: `{imported.source}`.", ""]
    lines += [f"Decoding: {', '.join(f'{k}={v}' for k, v in asdict(settings.generate).items())}.", ""]
    figures = _shown(settings)
    if trained and figures:
        lines += [f"Measured on {trained.measured_on}{_COUNTED.get(type(settings.task), '')}:", ""]
        lines += ["| figure | value |", "|---|---|"]
        lines += [*(f"| {name} | {value:.4f} |" for name, value in figures.items()), ""]
    return lines


def _shown(settings: ModelSettings) -> dict[str, float]:
    """Finite figures of the last evaluation that belong to the task."""
    names, figures = _FIGURES[type(settings.task)], settings.trained.figures if settings.trained else {}
    return {name: v for name, v in figures.items() if name.rsplit("/", 1)[-1] in names and math.isfinite(v)}


def _terms(settings: ModelSettings) -> list[str]:
    license_, language = settings.license or "not stated", ", ".join(settings.language) or "not stated"
    return [f"Licence of the trained tensors: {license_}; the frozen parts have their own. Language: {language}.", ""]


def _samples(settings: ModelSettings) -> list[str]:
    samples = settings.trained.samples if settings.trained else []
    if not samples:
        return []
    keys = ("input", "written", "reference")
    rows = [[" ".join(sample.get(key, "").replace("|", "\\|").split()) for key in keys] for sample in samples]
    head = ["| input | written | a reference |", "|---|---|---|"]
    return ["Samples of that evaluation:", "", *head, *(f"| {' | '.join(row)} |" for row in rows), ""]
