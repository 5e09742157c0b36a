"""Hook of mkdocs: links out of docs/ lead to pages of the site that show the file itself.

A page that is read in the repository links to recipes and source by relative paths. In the site such a file becomes a
page below source/, so that every link works offline. Pages of source are left out of the navigation and of the search.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml"}


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file or folder outside docs/ that a page, or such a page, links to."""
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    made: set[Path] = set()
    while waiting:
        origin = waiting.pop()
        text = origin.read_text(encoding="utf-8")
        targets = {target(origin, match[2]) for line in prose(text) for match in LINK.finditer(line)}
        for path in sorted(path for path in targets if path is not None and is_outside(path) and path not in made):
            made.add(path)
            files.append(source_page(config, path))
            if path.suffix == ".md":
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Turn links out of docs/ into links to the pages of source."""
    uri = page.file.src_uri
    origin = origin_of(uri)
    if uri.startswith("source/") and origin.suffix != ".md":
        return markdown
    return "\n".join(
        LINK.sub(lambda match: moved(match, origin, uri), line) if is_prose else line
        for line, is_prose in marked_lines(markdown)
    )


def moved(match: re.Match[str], origin: Path, uri: str) -> str:
    """Link of the page ``uri`` to where its target stands in the site."""
    path = target(origin, match[2])
    if path is None:
        return match[0]
    place = f"source/{path.relative_to(ROOT)}.md" if is_outside(path) else str(path.relative_to(DOCS))
    relative = os.path.relpath(place, os.path.dirname(uri) or ".")
    return f"{match[1]}{relative}{match[3] or ''}{match[4]}"


def origin_of(uri: str) -> Path:
    """File of the repository that the page ``uri`` shows."""
    return ROOT / uri.removeprefix("source/").removesuffix(".md") if uri.startswith("source/") else DOCS / uri


def target(origin: Path, link: str) -> Path | None:
    """Existing file or folder of the repository that ``link`` in ``origin`` names, or None."""
    path = Path(os.path.normpath(origin.parent / link))
    return path if path.exists() and path.is_relative_to(ROOT) else None


def is_outside(path: Path) -> bool:
    """Return True for what is no page or picture of docs/."""
    return not path.is_relative_to(DOCS) or path.suffix == ".py" or path.is_dir()


def source_page(config: Any, path: Path) -> File:
    """Page with the text of ``path``: Markdown as it is, source in colours, a folder as a list."""
    name = path.relative_to(ROOT)
    front = f"---\ntitle: {name}\nsearch: {{exclude: true}}\n---\n"
    if path.is_dir():
        text = f"# `{name}/`\n\n" + "\n".join(folder_lines(path)) + "\n"
    elif path.suffix == ".md":
        text = path.read_text(encoding="utf-8")
    else:
        language = LANGUAGES.get(path.suffix, "text")
        text = f"# `{name}`\n\n~~~~~{language}\n{path.read_text(encoding='utf-8')}~~~~~\n"
    return File.generated(config, f"source/{name}.md", content=front + text, inclusion=InclusionLevel.NOT_IN_NAV)


def folder_lines(folder: Path) -> Iterator[str]:
    """One line a file: its name, and the sentence that it opens with."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(("_", ".")):
            continue
        sentence = ""
        if path.suffix == ".py":
            sentence = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        elif path.suffix == ".yaml":
            sentence = path.read_text(encoding="utf-8").split("\n")[0].lstrip("# ")
        yield f"- `{path.name}{'/' if path.is_dir() else ''}` {sentence}"


def prose(text: str) -> Iterator[str]:
    """Lines of ``text`` outside fences."""
    return (line for line, is_prose in marked_lines(text) if is_prose)


def marked_lines(text: str) -> Iterator[tuple[str, bool]]:
    """Lines of ``text``, each with True where it is outside fences."""
    fence = ""
    for line in text.split("\n"):
        mark = re.match(r"\s*(`{3,}|~{3,})", line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
            yield line, False
            continue
        yield line, not fence
