"""Lines of ``mmprefix inspect`` for parts of a prefix that stand at no position."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmprefix.inspection.side_report import BesidePositions, SideLayer


def side_lines(parts: BesidePositions) -> list[str]:
    """Rows for a person: a line for each layer of each term, for gates, and for the updates together."""
    lines: list[str] = []
    for term in parts.terms:
        lines.append(f"beside the cache: {term.kind}, share of {term.measure}")
        lines += [_layer(layer) for layer in term.layers]
    if parts.gates:
        lines.append("gates of the positions: mean factor, mean norm of the shift")
        lines += [f"  layer {n:>2}  {factor:.3g}, {shift:.3g}" for n, (factor, shift) in enumerate(parts.gates)]
    if norms := parts.text_updates:
        lines.append(
            f"updates of the first {len(norms)} tokens' embeddings: norm {sum(norms) / len(norms):.3g} in the mean, "
            f"{max(norms):.3g} at most"
        )
    return lines


def _layer(layer: SideLayer) -> str:
    share = "" if layer.share is None else f"{100 * layer.share:5.1f} %  "
    gates = f"gates {' '.join(f'{gate:.3g}' for gate in layer.gates)}" if layer.gates else ""
    norms = ", ".join(f"norm of {name} {norm:.3g}" for name, norm in layer.norms.items())
    return f"  layer {layer.layer:>2}  {share}{'; '.join(part for part in (gates, norms) if part)}"
