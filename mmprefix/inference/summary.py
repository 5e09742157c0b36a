"""Few lines about a loaded model, as a notebook shows it: parts, device, and how much was trained."""

from __future__ import annotations

from mmprefix.model import PrefixLM
from mmprefix.parts import Part


def summarize(model: PrefixLM, source: str | None) -> str:
    """``Predictor(...)`` and a line a branch, for the decoder, and for the trained tensors."""
    first = next(model.parameters())
    lines = [f"Predictor({'' if source is None else f'{source!r}, '}device={str(first.device)!r})"]
    for name in model.encoders:
        mapper = model.mapper(name)
        behind = "" if mapper is None else f" → {type(mapper).__name__}"
        lines.append(f"  {name}: {_part(model.encoder(name))}{behind}")
    if model.transcriber is not None:
        lines.append(f"  transcriber: {_part(model.transcriber)}")
    lines.append(f"  decoder: {_part(model.decoder)}")
    trained = model.trained.values()
    count, size = sum(t.numel() for t in trained), sum(t.numel() * t.element_size() for t in trained)
    lines.append(f"  trained: {count:,} parameters ({size / 1e6:.2f} MB)")
    return "\n".join(lines)


def _part(part: Part) -> str:
    identity = getattr(part, "identity", None)
    return f"{type(part).__name__}({'' if identity is None else repr(identity.source)})"
