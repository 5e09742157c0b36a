"""The page in a real browser: what is written appears, nothing leaves the machine, refusals are sentences, axe agrees.

``MMPREFIX_SCREENSHOTS=FOLDER`` keeps the pictures that docs/demo.md shows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tiny import demo_files

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
if not Path(CHROMIUM).is_file():
    pytest.skip("needs the browser chromium", allow_module_level=True)

expect = playwright.expect
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
WAIT = 60_000  # milliseconds; the first call loads the model
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of ``mmprefix demo``, started from the shell in an empty folder."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "mmprefix", "demo", "--device", "cpu"]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        yield next(word for line in lines if "http" in line for word in line.split() if word.startswith("http"))
        process.terminate()
        assert process.wait(60) == 143
    assert not [*folder.glob("mmprefix-*"), *folder.glob("sample-*")]  # no upload is left


class Watched:
    """One page of one browser for all checks, and what it asked for and complained about."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.foreign: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self._note(request.url))
        page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _note(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            self.foreign.append(url)

    def open_anew(self, scheme: str = "light") -> None:
        """The page as a new visitor sees it, whose system has that colour scheme."""
        self.page.set_viewport_size({"width": 1000, "height": 900})
        self.page.emulate_media(color_scheme=scheme)  # pyright: ignore[reportArgumentType]
        self.page.goto(self.address)
        expect(self.page.get_by_role("button", name="Write the caption")).to_be_visible()

    def caption(self) -> str:
        """Caption of the input that is there, on a page that has shown none yet."""
        self.page.get_by_role("button", name="Write the caption").click()
        expect(self.page.get_by_text("the look inside in")).to_be_visible()
        return self.page.locator("#caption textarea").input_value()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def drop(self, *files: Path) -> None:
        """Put files into the shown place for files, which is emptied first."""
        panel = self.page.locator("[role=tabpanel]:visible")
        if not panel.get_by_label("Click to upload or drop files").first.is_visible():
            panel.get_by_label("Clear").first.click()
        panel.locator("input[type=file]").first.set_input_files(files)

    def refusal(self, text: str) -> None:
        """Wait for the sentence, and close it."""
        message = self.page.get_by_test_id("toast-body").filter(has_text=text).first
        expect(message).to_be_visible()
        self.page.wait_for_timeout(1000)  # it fades in
        self.axe("a message")
        # a message may fade out while it is clicked on: all that are left are closed at once
        self.page.evaluate("document.querySelectorAll('[data-testid=toast-close]').forEach(button => button.click())")
        expect(self.page.get_by_test_id("toast-body")).to_have_count(0)

    def axe(self, place: str) -> None:
        """No serious fault by axe-core, which the package axe-playwright-python brings."""
        if find_spec("axe_playwright_python") is None:
            return
        self.page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8"))
        faults = self._faults()
        for _ in range(5):  # what fades in has little contrast at first; a fault of the page stays
            if faults:
                self.page.wait_for_timeout(2000)
                faults = self._faults()
        assert faults == [], place

    def _faults(self) -> list[tuple[str, str]]:
        result: Any = self.page.evaluate("axe.run()")
        return [
            (fault["id"], node["html"])
            for fault in result["violations"]
            if fault["impact"] in SERIOUS
            for node in fault["nodes"]
        ]

    def shoot(self, name: str) -> None:
        if folder := os.environ.get("MMPREFIX_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / name), full_page=True)


@pytest.fixture(scope="module")
def watched(address: str) -> Iterator[Watched]:
    expect.set_options(timeout=WAIT)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1000, "height": 900}, permissions=["microphone", "camera"])
        watched = Watched(page, address)
        page.goto(address)
        expect(page.get_by_role("button", name="Write the caption")).to_be_visible()
        yield watched
        browser.close()


@pytest.fixture(autouse=True)
def nothing_leaves_and_nothing_complains(watched: Watched) -> Iterator[None]:
    yield
    assert watched.foreign == []
    assert watched.errors == []


def test_a_picture_is_captioned_while_it_is_looked_at(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    ((file, references),) = demo_files.pictures(tmp_path, 1)
    page.evaluate(  # what the caption's box shows over time
        """() => { window.seen = []; window.watch = setInterval(() => {
        const text = document.querySelector("#caption textarea")?.value;
        if (text && text !== window.seen.at(-1)) window.seen.push(text) }, 10) }"""
    )
    watched.drop(file)
    expect(page.get_by_alt_text("The picture").first).to_be_visible()
    page.get_by_role("button", name="Write the caption").click()
    expect(page.get_by_role("region", name="Positions of the prefix")).to_be_visible()
    caption = page.locator("#caption textarea").input_value()
    assert caption in references
    seen = page.evaluate("() => { clearInterval(window.watch); return window.seen }")
    assert seen[-1] == caption
    assert len(seen) > 1  # it came in pieces, of which a busy browser shows some
    assert seen[-1].startswith(seen[0])
    candidates = page.get_by_role("region", name="Candidates")
    assert candidates.locator("tbody tr").count() == 3
    assert candidates.evaluate("table => table.scrollWidth <= table.clientWidth")  # nothing is cut off
    assert candidates.locator("tbody td").first.evaluate("cell => cell.clientHeight") < 120  # nor squeezed
    picture = page.get_by_alt_text("The input under colours")
    expect(picture).to_be_visible()
    before = picture.get_attribute("src")
    page.get_by_label("Where it looks: position").click()
    page.get_by_role("option", name="position 3").click()
    expect(picture).not_to_have_attribute("src", str(before))
    watched.axe("a captioned picture")
    watched.shoot("demo-caption.png")


def test_a_sound_is_captioned_by_keyboard_alone(watched: Watched) -> None:
    page = watched.page
    page.get_by_role("button", name="Sample sound").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("The sound").first).to_be_visible()
    page.get_by_role("tab", name="Caption").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent").strip() == "Write the caption":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_text("second ").first).to_be_visible()
    assert page.locator("#caption textarea").input_value()
    watched.axe("a captioned sound")


def test_what_is_too_much_is_a_sentence_and_the_page_lives_on(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    cases = [
        (demo_files.large_file(tmp_path / "large.png"), "exceed the maximum allowed size"),
        (demo_files.text_file(tmp_path / "text.png"), "text.png: not a picture that can be read"),
        (demo_files.long_sound(tmp_path / "long.wav"), "long.wav: 600 s long; this page takes sounds of at most 120 s"),
        (demo_files.huge_picture(tmp_path / "huge.png"), "pixels"),
    ]
    for file, text in cases:
        watched.drop(file)
        watched.refusal(text)
    page.get_by_role("button", name="Sample picture").click()
    expect(page.get_by_alt_text("The picture").first).to_be_visible()
    page.get_by_role("button", name="Write the caption").click()
    expect(page.get_by_text("the look inside in")).to_be_visible()


def test_twenty_files_become_a_table(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    watched.tab("Many files")
    files = [path for path, _ in demo_files.pictures(tmp_path / "in", 19)]
    watched.drop(*files, demo_files.text_file(tmp_path / "broken.png"))
    expect(page.get_by_role("cell", name="broken.png")).to_be_attached()
    page.get_by_role("button", name="Caption all files").click()
    expect(page.get_by_text("20 of 20 files, 1 with an error")).to_be_visible()
    assert page.get_by_role("region", name="Captions").locator("tbody tr").count() == 20
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the table (CSV)").click()
    assert len(Path(download.value.path()).read_text("utf-8").splitlines()) == 21
    watched.axe("a batch")
    watched.shoot("demo-batch.png")


def test_a_command_is_understood_on_a_phone(watched: Watched) -> None:
    page = watched.page
    page.set_viewport_size({"width": 390, "height": 800})
    watched.tab("Commands")
    panel = page.locator("[role=tabpanel]:visible")
    panel.get_by_role("button", name="Sample sound").click()
    expect(panel.get_by_label("The sound")).to_be_visible()
    page.get_by_role("button", name="Understand").click()
    expect(page.get_by_role("region", name="Intent and slots")).to_be_visible()
    watched.axe("a command")
    for tab in ("Many files", "Caption", "Commands"):
        watched.tab(tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    watched.shoot("demo-phone.png")
    assert page.evaluate("document.documentElement.lang") == "en"


def test_a_recorded_sound_is_captioned(watched: Watched) -> None:
    """By the browser's own microphone, which beeps once a second."""
    watched.open_anew()
    page = watched.page
    page.get_by_role("button", name="Camera and microphone").click()
    page.get_by_role("button", name="Record").click()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Stop").first.click()  # the page's own comes after it
    expect(page.get_by_label("The sound").first).to_be_visible()
    assert watched.caption()
    expect(page.get_by_text("second ").first).to_be_visible()  # it was heard, not seen
    expect(page.get_by_role("button", name="Share")).to_have_count(0)
    watched.axe("a recorded sound")


def test_a_photographed_picture_is_captioned(watched: Watched) -> None:
    """By the browser's own camera, which shows a clock."""
    watched.open_anew()
    page = watched.page
    page.get_by_role("button", name="Camera and microphone").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("[...document.querySelectorAll('video')].some(video => video.videoWidth > 0)")
    page.wait_for_timeout(1000)  # its button takes clicks a moment after the first frame
    page.get_by_role("button", name="capture photo").click()
    expect(page.get_by_alt_text("The picture").first).to_be_visible()
    assert watched.caption()
    expect(page.get_by_alt_text("The input under colours")).to_be_visible()
    expect(page.get_by_role("button", name="Share")).to_have_count(0)


def test_the_dark_page_can_be_read(watched: Watched, tmp_path: Path) -> None:
    watched.open_anew("dark")
    page = watched.page
    assert "dark" in str(page.locator("body").get_attribute("class")).split()
    page.get_by_role("button", name="Sample picture").click()
    expect(page.get_by_alt_text("The picture").first).to_be_visible()
    assert watched.caption()
    for name in ("User", "Search"):
        page.get_by_role("button", name=name, exact=False).first.click()
    watched.axe("a captioned picture, dark")
    watched.shoot("demo-dark.png")
    watched.drop(demo_files.text_file(tmp_path / "text.png"))
    watched.refusal("text.png: not a picture that can be read")
    for tab in ("Commands", "Many files"):
        watched.tab(tab)
        watched.axe(f"{tab}, dark")
    watched.open_anew()
