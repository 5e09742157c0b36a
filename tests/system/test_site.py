"""The documentation as a site: built strictly, every page in the navigation, and nothing is fetched from elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FETCHED = re.compile(
    r"<(?:script|link|img|iframe|source|audio|video)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)"
)
IN_STYLES = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")


def pages_in(entries: list[Any]) -> list[str]:
    """Pages of a navigation, at any depth."""
    paths: list[str] = []
    for entry in entries:
        values = list(entry.values()) if isinstance(entry, dict) else [entry]
        for value in values:
            paths += [value] if isinstance(value, str) else pages_in(value)
    return paths


def test_every_page_is_in_the_navigation_once() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = pages_in(yaml.safe_load(config)["nav"])
    written = sorted(str(file.relative_to(ROOT / "docs")) for file in (ROOT / "docs").rglob("*.md"))
    assert sorted(listed) == written


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built site; a link or anchor that leads nowhere, or a name without a docstring's object, ends the build."""
    for package, name in {
        "mkdocs": "mkdocs",
        "material": "mkdocs-material",
        "mkdocstrings": "mkdocstrings-python",
    }.items():
        if find_spec(package) is None:
            pytest.skip(f"needs {name}: pip install 'mmprefix[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    files = sorted(site.rglob("*.html"))
    assert len(files) > 40
    for file in files:
        assert FETCHED.findall(file.read_text(encoding="utf-8")) == [], file
    for file in site.rglob("*.css"):
        assert IN_STYLES.findall(file.read_text(encoding="utf-8")) == [], file


@pytest.mark.slow
def test_the_reference_has_docstrings_and_source_can_be_read(site: Path) -> None:
    inference = (site / "reference" / "inference.html").read_text(encoding="utf-8")
    assert "A Predictor from a saved directory or a hub repository" in inference
    recipe = (site / "source" / "recipes" / "uapt.yaml.html").read_text(encoding="utf-8")
    assert "User-Aware Prefix-Tuning" in recipe
    assert 'href="../source/recipes/uapt.yaml.html"' in (site / "systems" / "uapt.html").read_text(encoding="utf-8")
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert "pillow-heif" in index
    assert '"location":"source/' not in index


@pytest.mark.slow
def test_the_pattern_sees_what_is_fetched(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    assert FETCHED.findall(page + '<script src="https://example.org/a.js"></script>') == ["https://example.org/a.js"]
    assert FETCHED.findall("<a href='https://example.org'>a link may be followed</a>") == []


@pytest.mark.slow
def test_a_browser_searches_the_pages_without_a_server(site: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None or find_spec("playwright") is None:
        pytest.skip("needs chromium and playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((site / "systems" / "index.html").as_uri())
        page.locator(".md-search__input").click(timeout=60_000)
        page.locator(".md-search__input").press_sequentially("pillow-heif")
        page.locator(".md-search-result__item").first.wait_for(timeout=60_000)
        browser.close()
    assert [url for url in requests if not url.startswith("file:")] == []
