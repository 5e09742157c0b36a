"""Handlers of the page's buttons with the embedded model: what a visitor sees, step by step."""

from __future__ import annotations

import csv
import json
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr
import numpy as np
import torch
from PIL import Image

import mmprefix
from mmprefix.demo.calls import DemoState, on_page
from mmprefix.demo.inside import ALL, heat
from mmprefix.demo.limits import DemoLimits
from mmprefix.demo.models import EMBEDDED_NAME, ModelShelf, local_models
from mmprefix.demo.previews import preview, sample_file
from mmprefix.demo.tabs.batch_tab import batch_handler
from mmprefix.demo.tabs.caption_tab import caption_handler
from mmprefix.demo.tabs.commands_tab import OWN, commands_handler
from mmprefix.errors import InputError
from mmprefix.features.neighbours import Neighbours
from mmprefix.inference.model_folder import EMBEDDED_MODEL
from mmprefix.inspection import Maps
from tiny import demo_files

NOBODY: Any = None  # a call that came from no browser


@pytest.fixture(scope="module")
def state() -> DemoState:
    return DemoState(ModelShelf(local_models(runs=Path("none")), device="cpu"), DemoLimits())


def caption(state: DemoState, file: object, **changes: Any) -> list[tuple[Any, ...]]:
    values: dict[str, Any] = {"count": 3, "look": True, "prompt": "", "user": "nobody", "history": "", "longest": 30}
    values |= {"start": "", "hold": "", "avoid": ""} | changes
    return list(caption_handler(state)(NOBODY, str(file), EMBEDDED_NAME, *values.values()))


def test_a_caption_grows_and_ends_as_the_model_s_own(state: DemoState, tmp_path: Path) -> None:
    ((file, references),) = demo_files.pictures(tmp_path, 1)
    steps = caption(state, file)
    texts = [step[0] for step in steps]
    assert len(set(texts)) > 4
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    model = state.models.get(EMBEDDED_NAME)
    assert texts[-1] == model(file)
    assert texts[-1] in references
    *_, last = steps
    _, timing, candidates, (kept, maps), positions, picture, words = last
    assert "first piece after" in timing
    assert all(candidate.text in candidates for candidate in model.candidates(file, num_return=3))
    assert kept == str(file)
    assert positions["choices"][0] == ALL
    assert len(positions["choices"]) == 1 + len(maps.labels) == 1 + words.count("<tr>") - 1
    picture = picture["value"]
    assert picture.size == heat(kept, maps, "position 0").size
    assert picture.tobytes() != heat(kept, maps, "position 0").tobytes()


def test_neighbours_choose_the_caption(state: DemoState, tmp_path: Path) -> None:
    files = [str(path) for path, _ in demo_files.pictures(tmp_path, 3)]
    plain = state.models.get(EMBEDDED_NAME)
    encoder, beams = plain.model.encoder("image"), plain.candidates(files, num_beams=5, num_return=5)
    captions = [[f"{texts[-1].text} {word}"] for texts, word in zip(beams, "abc", strict=True)]
    vectors = Neighbours(encoder, torch.zeros(1, encoder.pooled_dim), [["a"]], 1, 1).embed(files)
    Neighbours(encoder, vectors, captions, 1, 1, judges=1).save(tmp_path / "file")
    places = local_models(runs=Path("none"))
    shelf = ModelShelf(places, neighbours={EMBEDDED_MODEL: str(tmp_path / "file")}, device="cpu")
    chosen = DemoState(shelf, DemoLimits())
    wanted = mmprefix.load(device="cpu", neighbours=tmp_path / "file")(files)
    assert wanted != plain(files)
    *_, last = caption(chosen, files[0], look=False)
    assert last[0] == wanted[0]
    assert last[2].index(wanted[0]) == min(last[2].index(text.text) for text in beams[0] if text.text in last[2])
    *_, batch = batch_handler(chosen)(NOBODY, files, EMBEDDED_NAME, "")
    assert all(text in batch[3] for text in wanted)


def test_a_caption_begins_holds_and_avoids_as_asked(state: DemoState) -> None:
    file = sample_file("image")
    *_, last = caption(state, file, start="a small", hold="cross, pink", avoid="left", look=False)
    assert last[0].startswith("a small")
    assert "cross" in last[0]
    assert "pink" in last[0]
    assert "left" not in last[0]


def test_the_heat_over_a_large_photograph_is_small(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 2000), (90, 120, 150)).save(tmp_path / "large.jpg")
    values = np.array([[[0.0, 1.0]]], dtype=np.float32)  # the right half is hot
    edges = np.array([0.0, 2000.0, 4000.0]), np.array([0.0, 2000.0])
    maps = Maps(values, np.ones(1), *edges, ("0",), "image", "image", "occlusion", (4000, 2000))
    drawn = heat(str(tmp_path / "large.jpg"), maps, "position 0")
    assert drawn.size == (1280, 640)
    left, right = (np.asarray(drawn)[:, place].mean((0, 1)) for place in (slice(0, 639), slice(641, 1280)))
    assert right[0] - right[2] > 50 > 0 > left[0] - left[2]  # yellow, and blue


def test_a_sound_shows_its_spectrogram(state: DemoState) -> None:
    file = sample_file("audio")
    assert preview(file) == ("audio", file)
    *_, last = caption(state, file, count=1)
    assert last[5]["value"].width >= 320
    assert "second " in last[6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 99}, "candidates 99: give 1 to 8"),
        ({"longest": 10_000}, "longest caption 10000: give 1 to 200 tokens"),
        ({"hold": ",".join("abcdefghijkl")}, "must_hold: 12 words; this page takes at most 10"),
        ({"prompt": "x" * 20_001}, "prompt: 20,001 characters"),
        ({"history": "my dog"}, "history: this model was trained without users' texts; leave it out"),
        ({"user": "u07"}, "user: this model was trained without users; leave it out"),
    ],
)
def test_what_the_page_or_the_model_refuses_is_a_sentence(
    state: DemoState, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        caption(state, sample_file("image"), **changes)


def test_an_unknown_model_is_refused(state: DemoState) -> None:
    with pytest.raises(InputError, match=r"model '/etc': this page does not have it"):
        list(caption_handler(state)(NOBODY, sample_file("image"), "/etc", 1, False, "", None, "", 30, "", "", ""))


def test_one_broken_file_of_twenty_is_a_row(state: DemoState, tmp_path: Path) -> None:
    made = demo_files.pictures(tmp_path / "in", 19)
    uploads = [str(path) for path, _ in made]
    uploads.insert(7, str(demo_files.text_file(tmp_path / "=broken.png")))
    rows: list[dict[str, str]] = []
    members: dict[str, str] = {}
    for progress, table_file, texts, table in batch_handler(state)(NOBODY, uploads, EMBEDDED_NAME, ""):
        if not table_file["value"]:
            continue
        with Path(table_file["value"]).open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        with zipfile.ZipFile(texts["value"]) as archive:
            members = {name: archive.read(name).decode().strip() for name in archive.namelist()}
        assert "20 of 20 files, 1 with an error" in progress
        assert "&#x27;" not in table.split("scene-000.png")[1][:200]
    assert rows[7]["file"] == "'=broken.png"  # a spreadsheet does not run it
    assert "not a picture that can be read" in rows[7]["error"]
    assert str(tmp_path) not in rows[7]["error"]
    del rows[7]
    assert [row["error"] for row in rows] == [""] * 19
    right = [row["caption"] in references for row, (_, references) in zip(rows, made, strict=True)]
    assert sum(right) >= 15
    assert members == {f"{path.stem}.txt": row["caption"] for row, (path, _) in zip(rows, made, strict=True)}


def test_a_batch_out_of_time_keeps_what_is_done(state: DemoState, tmp_path: Path) -> None:
    made = demo_files.pictures(tmp_path / "in", 3)
    hasty = DemoState(state.models, DemoLimits(timeout=1e-9))
    *_, last = batch_handler(hasty)(NOBODY, [str(path) for path, _ in made], EMBEDDED_NAME, "")
    assert last[3].count("not reached within") == 3


def test_a_command_is_answered_by_the_schema_of_the_page(state: DemoState) -> None:
    schema = "intents: {on: {description: switch on}, off: {description: switch off}}"
    timing, table, text = commands_handler(state)(NOBODY, sample_file("audio"), "", EMBEDDED_NAME, OWN, schema)
    result = json.loads(text)
    assert result["intent"] in ("on", "off")
    assert result["intent"] in table
    assert "was not trained on commands" in timing


@pytest.mark.parametrize(
    ("name", "own", "message"),
    [
        (OWN, "intents: [", "your schema: "),
        (OWN, "a word", "your schema: "),
        (OWN, "intents: {}", "your schema: intents: is empty"),
        ("../../etc/passwd", "", "this page does not have it"),
    ],
)
def test_a_wrong_schema_is_a_sentence(state: DemoState, name: str, own: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        commands_handler(state)(NOBODY, sample_file("audio"), "", EMBEDDED_NAME, name, own)
    assert "/tmp" not in str(refused.value)


def test_a_visitor_who_calls_too_often_is_told_to_wait(state: DemoState) -> None:
    strict = DemoState(state.models, DemoLimits(rate=1))
    caption(strict, sample_file("image"), look=False, count=1)
    with pytest.raises(InputError, match="1 calls a minute"):
        caption(strict, sample_file("image"))


def test_messages_show_names_as_text_and_hide_what_nobody_foresaw(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(text: str) -> None:
        raise InputError(f"{text}: no")

    def fail(text: str) -> None:
        raise KeyError(text)

    with pytest.raises(gr.Error) as shown:
        on_page(refuse)("<img src=x onerror=alert(1)>.png")
    assert shown.value.message == "&lt;img src=x onerror=alert(1)&gt;.png: no"
    with pytest.raises(gr.Error) as shown:
        on_page(fail)("secret")
    assert "secret" not in shown.value.message
    assert "secret" in caplog.text
