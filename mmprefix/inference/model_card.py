"""The model card, saved beside what was trained: what the model is, what it was measured to do, how to use it."""

from __future__ import annotations

from typing import Any

from mmprefix.encoders.base import Encoder
from mmprefix.media.kinds import KINDS
from mmprefix.model import PrefixLM

_FIGURES = {
    "captioning": ("loss", "bleu_1", "bleu_4", "rouge_l", "cider_d", "cider_d_shuffled", "exact_match", "distinct"),
    "understanding": ("loss", "exact_match"),
    "detection": ("loss", "eer", "threshold", "auc", "exact_match"),
}
_TAGS = {
    "captioning": "captioning",
    "understanding": "spoken-language-understanding",
    "detection": "speech-detection",
}


def model_card(model: PrefixLM, settings: dict[str, Any]) -> str:
    """Markdown with a metadata header, from the model and the settings that are saved with it."""
    trained = model.trained.values()
    count, size = sum(t.numel() for t in trained), sum(t.numel() * t.element_size() for t in trained)
    task = "understanding" if settings.get("schema") else "detection" if settings.get("answers") else "captioning"
    parts = [
        f"| {name} | {type(part).__name__} | `{part.identity.source}` | {part.identity.revision or 'a folder'} | "
        f"`{part.identity.sha256[:16]}` |"
        for name, part in model.frozen_parts.items()
    ]
    lines = [
        "---",
        "library_name: mmprefix",
        f"tags: [mmprefix, prefix-tuning, {_TAGS[task]}]",
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
        _example(model, task),
        "```",
        "",
        *_about(settings, task),
        *_results(settings, task),
    ]
    return "\n".join(lines)


def _example(model: PrefixLM, task: str) -> str:
    """A line that calls the model with all that it can be given."""
    files = {name: _given(model.encoder(name)) for name in model.encoders}
    if model.transcriber is not None:
        files["audio"] = KINDS["audio"].example(0)
    named = ", ".join(f'"{name}": {value}' for name, value in files.items())
    first = next(iter(files.values())) if len(files) == 1 else f"{{{named}}}" if files else ""
    told = 'context="what was said"' if model.reads_text and model.transcriber is None else ""
    if task == "captioning":  # one file of any kind; without any, a dictionary says that the context stands alone
        one = files.get("audio") or next(iter(files.values()), "{}")
        return f"print(model({', '.join(filter(None, (one, told)))}))"
    call = {"understanding": "understand", "detection": "detect"}[task]
    more = "  # the log odds, in a list" if task == "detection" else "  # intent, slots and their scores"
    return f"print(model.{call}({', '.join(filter(None, (first, told)))})){more}"


def _given(encoder: Encoder) -> str:
    return KINDS[encoder.input_kind].example(encoder.pooled_dim)


def _about(settings: dict[str, Any], task: str) -> list[str]:
    if task == "understanding":
        schema = settings["schema"]
        name = schema.get("name", "its own") if isinstance(schema, dict) else schema
        return [f"Schema: {name}; intents are asked for by {settings.get('framing') or 'choice'}.", ""]
    if task == "detection":
        first, second = settings["answers"]
        return [f"Scores are the log odds of {first!r} against {second!r}; any subset of the inputs may be given.", ""]
    return []


def _results(settings: dict[str, Any], task: str) -> list[str]:
    trained, imported = settings.get("trained") or {}, settings.get("imported")
    lines = [f"Data: {', '.join(trained.get('data', [])) or 'not recorded'}.", ""]
    if imported:
        lines += [f"Imported from a checkpoint of {imported['system']}: `{imported['source']}`.", ""]
    decoding = ", ".join(f"{k}={v}" for k, v in (settings.get("generate") or {}).items())
    lines += [f"Decoding: {decoding or 'default'}.", ""]
    figures = trained.get("figures") or {}
    if figures:
        how = {"captioning": " (PTB-like tokens)", "understanding": ", each question counting once"}.get(task, "")
        lines += [f"Measured on {trained.get('measured_on', 'the validation data')}{how}:", ""]
        lines += ["| figure | value |", "|---|---|"]
        lines += [f"| {k} | {v:.4f} |" for k, v in figures.items() if k.rsplit("/", 1)[-1] in _FIGURES[task]]
        lines += [""]
    return lines
