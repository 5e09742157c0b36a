"""The model card, saved beside what was trained: what the model is, what it was measured to do, how to use it."""

from __future__ import annotations

from typing import Any

from mmprefix.model import PrefixLM

_FIGURES = ("loss", "bleu_1", "bleu_4", "rouge_l", "cider_d", "cider_d_shuffled", "exact_match", "distinct")


def model_card(model: PrefixLM, settings: dict[str, Any]) -> str:
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
        "tags: [mmprefix, prefix-tuning, captioning]",
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
        f'print(model("{"sound.wav" if "audio" in model.encoders else "picture.jpg"}"))',
        "```",
        "",
        *_results(settings),
    ]
    return "\n".join(lines)


def _results(settings: dict[str, Any]) -> list[str]:
    trained, imported = settings.get("trained") or {}, settings.get("imported")
    lines = [f"Data: {', '.join(trained.get('data', [])) or 'not recorded'}.", ""]
    if imported:
        lines += [f"Imported from a checkpoint of {imported['system']}: `{imported['source']}`.", ""]
    decoding = ", ".join(f"{k}={v}" for k, v in (settings.get("generate") or {}).items())
    lines += [f"Decoding: {decoding or 'default'}.", ""]
    figures = trained.get("figures") or {}
    if figures:
        lines += [f"Measured on {trained.get('measured_on', 'the validation data')} (PTB-like tokens):", ""]
        lines += ["| figure | value |", "|---|---|"]
        lines += [f"| {k} | {v:.4f} |" for k, v in figures.items() if k.rsplit("/", 1)[-1] in _FIGURES]
        lines += [""]
    return lines
