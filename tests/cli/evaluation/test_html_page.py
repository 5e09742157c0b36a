"""Page of an evaluation: which input a line names, where it lies, and what stands on the page."""

from __future__ import annotations

import argparse
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from mmprefix.cli.evaluation.html_page import MEDIA, media_in, shown_media, write_page
from mmprefix.errors import InputError
from mmprefix.reports.rows import ScoredText


class Words(HTMLParser):
    """Texts of a page outside of styles and scripts, and its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.texts, self.pictures, self.open = list[str](), 0, list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.pictures += tag == "img"
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if data.strip() and not {"style", "script"} & {*self.open}:
            self.texts.append(data.strip())


@pytest.mark.parametrize("field", MEDIA)
def test_each_field_may_name_the_input(field: str) -> None:
    assert media_in({"prediction": "a dog", field: "dog.png"}) == "dog.png"


def test_the_first_field_that_holds_a_path_counts() -> None:
    assert media_in({"video": "v.mp4", "file": ["frame.png"], "image": "i.png"}) == "i.png"
    assert media_in({"image": None, "text": "words"}) == ""
    assert media_in(["dog.png"]) == ""
    assert media_in("dog.png") == ""


def test_an_input_is_looked_up_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "written"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save(folder / "beside.png")
    assert shown_media("beside.png", folder) == ("image", str(folder / "beside.png"))
    Image.new("RGB", (4, 4)).save(tmp_path / "beside.png")
    assert shown_media("beside.png", folder) == ("image", "beside.png")  # from here first


def test_what_cannot_be_told_has_no_kind(tmp_path: Path) -> None:
    (tmp_path / "notes").write_bytes(b"\0\1\2")
    assert shown_media("notes", tmp_path) == ("", str(tmp_path / "notes"))
    assert shown_media("gone.png", tmp_path) == ("", str(tmp_path / "gone.png"))
    assert shown_media("", tmp_path) == ("", "")


def test_the_page_holds_figures_notes_sections_and_inputs(tmp_path: Path) -> None:
    file = tmp_path / "dog.png"
    Image.new("RGB", (4, 4), (200, 0, 0)).save(file)
    rows = [
        ScoredText("1", "image", str(file), "a <b>dog</b> & cat", ("a dog",), score=0.25, metric="CIDEr-D"),
        ScoredText("2", "image", "", "rain", ("snow",), score=0.0, metric="CIDEr-D"),
    ]
    page = tmp_path / "page.html"
    args = argparse.Namespace(predictions=str(tmp_path / "written.jsonl"), html=str(page))
    write_page(args, rows, {"bleu_4": 0.12345}, notes=["1 line < 2 has no input"], sections=["<p>own part</p>"])
    words = Words()
    words.feed(page.read_text(encoding="utf-8"))
    shown = " ".join(words.texts)
    assert "written.jsonl" in shown
    for text in ("bleu_4", "0.1235", "1 line < 2 has no input", "own part", "a <b>dog</b> & cat", "a dog", "snow"):
        assert text in shown
    assert words.pictures == 1


def test_a_page_that_cannot_be_written_is_refused_by_its_name(tmp_path: Path) -> None:
    args = argparse.Namespace(predictions="written.jsonl", html=str(tmp_path / "file" / "page.html"))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"page\.html: could not be written"):
        write_page(args, [], {})
