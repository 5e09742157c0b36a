"""Pieces of HTML: tables that a screen reader walks, texts that stay texts."""

from __future__ import annotations

from html.parser import HTMLParser

from mmprefix.demo.html_parts import note, player, progress, table

NASTY = "<img src=x onerror=\"alert('1')\">&amp;"


class Parsed(HTMLParser):
    """Tags with their attributes in order, and the text inside each of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_a_table_has_a_caption_and_heads_of_columns_and_rows() -> None:
    parsed = Parsed(table("Scores", ["File", "Text"], [("a.png", 1), ("b.png", 2.5)]))
    assert parsed.attributes("div") == [
        {"class": "scroll", "role": "region", "aria-label": "Scores", "tabindex": "0"}
    ]  # what scrolls is reached by keyboard
    assert parsed.texts == [
        *[("caption", "Scores"), ("th", "File"), ("th", "Text")],
        *[("th", "a.png"), ("td", "1"), ("th", "b.png"), ("td", "2.5")],
    ]
    assert [attributes["scope"] for attributes in parsed.attributes("th")] == ["col", "col", "row", "row"]
    plain = Parsed(table("Scores", ["File"], [("a.png",), ()], row_head=False))
    assert [attributes["scope"] for attributes in plain.attributes("th")] == ["col"]
    assert ("td", "a.png") in plain.texts


def test_a_text_is_never_a_tag_or_an_attribute() -> None:
    for text in (
        table(NASTY, [NASTY], [(NASTY,)]),
        progress(1, 2, NASTY),
        note(NASTY),
        player(NASTY, f"/sounds/{NASTY}"),
    ):
        parsed = Parsed(text)
        assert parsed.attributes("img") == []
        assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert ("th", NASTY) in Parsed(table("", [NASTY], [])).texts
    assert Parsed(player(NASTY, "x")).attributes("audio")[0]["aria-label"] == NASTY


def test_progress_and_notes_are_read_out() -> None:
    parsed = Parsed(progress(3, 20, "3 of 20 files"))
    assert parsed.attributes("progress") == [{"value": "3", "max": "20", "aria-label": "files done"}]
    assert parsed.attributes("span") == [{"role": "status"}]
    assert Parsed(progress(0, 0, "")).attributes("progress")[0]["max"] == "1"  # 0 would be an unknown end
    assert Parsed(note("Writing ...")).tags == [("p", {"role": "status"})]


def test_a_player_s_address_is_that_of_the_file_whatever_its_name() -> None:
    (audio,) = Parsed(player("The sound", "/sounds/a b/#1?&é.wav")).attributes("audio")
    assert audio["src"] == "gradio_api/file=/sounds/a%20b/%231%3F%26%C3%A9.wav"
    assert "controls" in audio
