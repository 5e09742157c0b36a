"""The model card, saved beside the trained tensors: parts, data, figures, decoding, and an example that runs."""

from __future__ import annotations

from dataclasses import asdict

from mmprefix.encoders.base import Encoder
from mmprefix.media.kinds import KINDS
from mmprefix.model import PrefixLM
from mmprefix.saved_model import Captioning, Detection, ModelSettings, Understanding

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
_COUNTED: dict[type, str] = {Captioning: " (PTB-like tokens)", Understanding: ", each question counting once"}


def model_card(model: PrefixLM, settings: ModelSettings) -> str:
    """Markdown with a metadata header, from the model and the settings that are saved with it."""
    trained = model.trained.values()
    count, size = sum(t.numel() for t in trained), sum(t.numel() * t.element_size() for t in trained)
    parts = [
        f"| {name} | {type(part).__name__} | `{part.identity.source}` | {part.identity.revision or 'a folder'} | "
        f"`{part.identity.sha256[:16]}` |"
        for name, part in model.frozen_parts.items()
    ]
    lines = [
        "---",
        "library_name: mmprefix",
        f"tags: [mmprefix, prefix-tuning, {_TAGS[type(settings.task)]}]",
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
        *_results(settings),
    ]
    return "\n".join(lines)


def _example(model: PrefixLM, settings: ModelSettings) -> str:
    """A line that calls the model with everything that it can read."""
    files = {name: _example_input(model.encoder(name)) for name in model.encoders}
    if model.transcriber is not None:
        files["audio"] = KINDS["audio"].example(0)
    named = ", ".join(f'"{name}": {value}' for name, value in files.items())
    first = next(iter(files.values())) if len(files) == 1 else f"{{{named}}}" if files else ""
    context = 'context="what was said"' if model.reads_text and model.transcriber is None else ""
    if isinstance(settings.task, Captioning):  # a file of any kind; an empty dictionary where the context stands alone
        file = files.get("audio") or next(iter(files.values()), "{}")
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
    if trained and trained.figures:
        task = type(settings.task)
        shown = {name: value for name, value in trained.figures.items() if name.rsplit("/", 1)[-1] in _FIGURES[task]}
        lines += [f"Measured on {trained.measured_on}{_COUNTED.get(task, '')}:", ""]
        lines += ["| figure | value |", "|---|---|"]
        lines += [*(f"| {name} | {value:.4f} |" for name, value in shown.items()), ""]
    return lines
