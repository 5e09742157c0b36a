"""Draw docs/architecture.svg: the rooms of the package on their floors, and who imports whom.

    python docs/draw_architecture.py

Floors are the layers of the import contract in pyproject.toml, arrows the imports in the source. An arrow that
follows from two others is left out. A test compares the picture with the source.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
INK, LINE = "#1f2937", "#64748b"
FILLS = {"encoders": "#dbeafe", "decoders": "#dbeafe", "mappers": "#fed7aa", "fast": "#e5e7eb"}
WIDTH, FLOOR, BOX, HEIGHT = 900, 54, 132, 30


def floors() -> list[list[str]]:
    """The rooms of each floor, the top floor first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return [[room.strip() for room in layer.split("|")] for layer in layers]


def imports_between(rooms: set[str]) -> list[tuple[str, str]]:
    """Pairs (importer, imported) of rooms, from the imports of all files but those for type checkers alone."""
    graph = grimp.build_graph("mmprefix", exclude_type_checking_imports=True, cache_dir=None)
    pairs: set[tuple[str, str]] = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            both = [name.split(".")[1] if "." in name else "" for name in (module, imported)]
            if both[0] != both[1] and rooms.issuperset(both):
                pairs.add((both[0], both[1]))
    return sorted(pairs)


def without_shortcuts(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs that no longer way over other pairs makes superfluous (the transitive reduction)."""
    below: dict[str, set[str]] = {}
    for importer, imported in pairs:
        below.setdefault(importer, set()).add(imported)

    @cache
    def reached(room: str) -> frozenset[str]:
        direct = below.get(room, set())
        return frozenset(direct).union(*(reached(other) for other in direct))

    return [(a, b) for a, b in pairs if not any(b in reached(other) for other in below[a] - {b})]


def centres(storeys: list[list[str]]) -> dict[str, tuple[float, float]]:
    """The middle of each room's box."""
    places: dict[str, tuple[float, float]] = {}
    for number, rooms in enumerate(storeys):
        shift = 90 * (number % 2) - 45  # so that arrows that pass a floor are seen
        for column, room in enumerate(rooms):
            places[room] = (WIDTH * (column + 1) / (len(rooms) + 1) + shift, 40 + FLOOR * number)
    return places


def arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """A thin curve from the lower edge of one box to the upper edge of another."""
    (x1, y1), (x2, y2) = (start[0], start[1] + HEIGHT / 2), (end[0], end[1] - HEIGHT / 2)
    bend = min(60.0, (y2 - y1) / 2)
    curve = f"M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"
    return f'<path d="{curve}" fill="none" stroke="{LINE}" marker-end="url(#tip)"/>'


def svg() -> str:
    """The whole picture."""
    storeys = floors()
    places = centres(storeys)
    pairs = without_shortcuts(imports_between(set(places)))
    height = 40 + FLOOR * len(storeys)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker></defs>',
    ]
    parts += [arrow(places[importer], places[imported]) for importer, imported in pairs]
    for room, (x, y) in places.items():
        box = f'x="{x - BOX / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{BOX}" height="{HEIGHT}"'
        parts.append(f'<rect {box} rx="7" fill="{FILLS.get(room, "#f8fafc")}" stroke="{INK}"/>')
        place = f'x="{x:.0f}" y="{y + 5:.0f}" font-size="14" text-anchor="middle"'
        parts.append(f'<text {place} fill="{INK}">{room}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(svg(), encoding="utf-8")
