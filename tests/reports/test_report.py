"""Reports: pages ask for nothing outside, escape what they show, stay small, and hold the numbers of their files."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmprefix import InputError
from mmprefix.cli.main import main
from mmprefix.reports.confusion import confusion, confusion_table
from mmprefix.reports.curves import chart, read_metrics, thinned
from mmprefix.reports.det import det_figure
from mmprefix.reports.gallery import choose
from mmprefix.reports.rows import CIDER, EXACT, MARGIN, ScoredText, answers_by_question, read_rows, scored
from mmprefix.reports.run_report import ReportOptions, run_files, write_report
from mmprefix.reports.thumbnails import SIDE, jpeg, spectrogram, thumbnail
from tiny.captioning_system import CaptioningSystem, quietly
from tiny.shell import Shell

pytestmark = list(quietly)
NASTY = '<script>alert("1")</script>&\x00\'" onload=x'


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def points(self) -> dict[str, list[tuple[float, float]]]:
        """Points of each line by its name."""
        lines = {}
        for _, attributes in self.tags:
            if "data-points" in attributes:
                pairs = (pair.split(",") for pair in attributes["data-points"].split())
                lines[attributes["data-name"]] = [(float(x), float(y)) for x, y in pairs]
        return lines

    def asks_for_nothing(self) -> None:
        """No script, and every address is data."""
        assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in self.tags}
        for _, attributes in self.tags:
            assert not any(name.startswith("on") for name in attributes)
            for name in ("src", "href", "srcset", "poster", "action"):
                assert attributes.get(name, "data:").startswith(("data:", "#"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder of a run as a fit leaves it: metrics, captions of pictures and sounds, a log."""
    folder = tmp_path / "runs" / "one"
    captions = folder / "logs" / "version_0" / "captions"
    captions.mkdir(parents=True)
    values = [("0", "2.5", ""), ("1", "1.25", ""), ("2", "1e-05", "1.75"), ("3", "nan", ""), ("4", "0.5", "1.5")]
    lines = [f"0,{step},{train},{val},{0.1 if val else ''}\n" for step, train, val in values]
    (folder / "logs/version_0/metrics.csv").write_text("epoch,step,train/loss,val/loss,val/cider_d\n" + "".join(lines))
    generator = np.random.default_rng(0)
    rows = []
    for number in range(8):
        sound, picture = tmp_path / f"{number}.wav", tmp_path / f"{number}.png"
        soundfile.write(sound, np.sin(np.arange(16000 * 12) * (0.1 + number / 20)) * 0.3, 16000)
        Image.fromarray(generator.integers(0, 255, (700, 500, 3), dtype=np.uint8)).save(picture)
        for group, media in (("audio", sound), ("image", picture)):
            text = NASTY if number == 0 else f"a sound of kind {number} with <b>"
            reference = f"a sound of kind {number if number % 2 else 'x'} with <b>"
            rows.append({"id": f"{group}{number}", "group": group, "media": str(media), "prediction": text})
            rows[-1] |= {"references": [reference, "another"], "nll": 1.0, "nll_shuffled": 1.0, "tokens": 4}
    rows[3]["media"] = str(tmp_path / "gone.png")
    (captions / "val-step4.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = "2026-01-01 10:00:00 WARNING mmprefix.training.climbing_loss: the loss climbs: 1 <up>\n"
    (folder / "log.txt").write_text("2026-01-01 10:00:00 INFO mmprefix.x: not shown\n" + log)
    return folder


def drawn(folder: Path, options: ReportOptions | None = None, signs: tuple[str, ...] = ()) -> tuple[Page, str]:
    out = folder / "page.html"
    write_report(run_files(folder), out, options or ReportOptions(), signs)
    text = out.read_text(encoding="utf-8")
    return Page(text), text


def test_a_page_asks_for_nothing_and_escapes_all(run: Path) -> None:
    page, text = drawn(run, signs=(NASTY,))
    page.asks_for_nothing()
    assert "<script" not in text
    assert "\x00" not in text
    shown = "".join(page.texts)
    assert shown.count('<script>alert("1")</script>') == 3  # two captions and the sign
    assert "the loss climbs: 1 <up>" in shown
    assert "not shown" not in shown
    assert "gone.png" in shown  # a file that went away is a sentence on its card
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert sum(src.startswith("data:image/jpeg;base64,") for src in pictures) == 7
    assert sum(src.startswith("data:image/png;base64,") for src in pictures) == 8
    clips = [attributes["src"] for tag, attributes in page.tags if tag == "audio"]
    values, rate = soundfile.read(io.BytesIO(base64.b64decode(clips[0].partition(",")[2])))
    assert (len(clips), rate, len(values) / rate) == (8, 16000, pytest.approx(10, abs=0.1))


def test_curves_are_the_numbers_of_the_table(run: Path) -> None:
    points = drawn(run)[0].points
    with (run / "logs/version_0/metrics.csv").open() as stream:
        table = list(csv.DictReader(stream))
    for name in ("train/loss", "val/loss"):
        expected = [(float(row["step"]), float(row[name])) for row in table if row[name] not in ("", "nan")]
        assert points[name] == expected
    assert set(points) == {"train/loss", "val/loss", "val/cider_d"}


def test_a_long_line_keeps_its_ends_and_its_peaks() -> None:
    generator = np.random.default_rng(0)
    points = [(float(step), float(value)) for step, value in enumerate(generator.normal(size=5000))]
    kept = thinned(points)
    assert len(kept) <= 402
    assert {points[0], points[-1], max(points, key=lambda p: p[1]), min(points, key=lambda p: p[1])} <= set(kept)
    assert kept == sorted(kept)
    assert Page(chart("x", {"a": points})).points["a"][0] == pytest.approx(points[0], rel=1e-4)


def test_metrics_without_numbers_are_no_lines(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,a,b\n0,0,x,\n0,1,inf,\n")
    assert read_metrics(tmp_path / "metrics.csv") == {}


def test_det_points_equal_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 60).astype(bool)
    scores = np.round(generator.normal(size=60) + labels, 1)
    points = Page(det_figure(scores.tolist(), labels.tolist())).points["det"]
    alarms, misses, _ = metrics.det_curve(labels, scores, drop_intermediate=False)
    theirs = np.stack([alarms, misses], axis=1)
    apart = np.abs(theirs[:, None] - np.array(points)[None]).max(axis=2)  # (their points, ours)
    assert apart.min(axis=1).max() < 1e-5
    assert len(theirs) > 10
    with pytest.raises(InputError):
        det_figure([1.0, 2.0], [True, True])


def test_confusion_equals_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(2)
    names = np.array(["play", "stop", "<b>", "lights"])
    gold, answers = names[generator.integers(0, 3, 90)].tolist(), names[generator.integers(0, 4, 90)].tolist()
    labels, counts = confusion(gold, answers)
    assert counts == metrics.confusion_matrix(gold, answers, labels=labels).tolist()
    page = Page(confusion_table(gold, answers))
    cells = [int(text) for text in page.texts if text.isdigit()]
    assert sum(cells) == 90
    assert "other" in page.texts  # lights is no gold label
    assert confusion_table([str(n) for n in range(50)], [str(n) for n in range(50)]) == ""


def test_sizes_are_bounded_and_what_is_left_out_is_counted(run: Path) -> None:
    whole = drawn(run)[1]
    assert "left out" not in whole
    text = drawn(run, ReportOptions(0.3))[1]
    assert len(text.encode()) <= 300_000 < len(whole.encode())
    cards = text.count("<article")
    assert 0 < cards < 16
    assert f"{16 - cards} cards were left out" in text
    with pytest.raises(InputError, match=r"give 0\.1 to 500"):
        ReportOptions(0.0)


def test_pictures_and_spectrograms_are_small() -> None:
    data = jpeg(Image.new("RGBA", (2000, 1000)))
    assert Image.open(io.BytesIO(data)).size == (SIDE, SIDE // 2)
    rate = 16000
    for pitch in (300.0, 3000.0):
        values = np.sin(2 * np.pi * pitch * np.arange(rate) / rate).astype(np.float32)
        picture = np.array(Image.open(io.BytesIO(spectrogram(values, rate))))
        loudest = picture.shape[0] - 1 - int(picture[:, picture.shape[1] // 2].argmax())  # bands from below
        mel = 2595 * np.log10(1 + pitch / 700) / (2595 * np.log10(1 + 8000 / 700)) * picture.shape[0]
        assert loudest == pytest.approx(mel, abs=1.5)
    for length in (0, 1, 100):
        Image.open(io.BytesIO(spectrogram(np.zeros(length, dtype=np.float32), 8000))).load()


def test_other_files_have_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert thumbnail(str(tmp_path / "a.txt")) == ""
    with pytest.raises(InputError):
        thumbnail(str(tmp_path / "none.wav"))


def row(name: str, prediction: str, *references: str, odds: float | None = None) -> ScoredText:
    return ScoredText(name, "audio", "", prediction, references, odds)


def test_scores_are_those_of_the_metrics() -> None:
    texts = [row("1", "a dog barks", "a dog barks loudly"), row("2", "rain", "rain on a roof"), row("3", "x", "a cat")]
    rows = scored(texts)
    assert {one.metric for one in rows} == {CIDER}
    assert (rows[0].score or 0) > (rows[2].score or 0) == 0
    answers = scored([row("u [1] what?", "play", "play"), row("v [1] what?", "stop", "play")])
    assert [(one.score, one.metric) for one in answers] == [(1.0, EXACT), (0.0, EXACT)]
    odds = scored([row("1", "yes", "yes", odds=2.0), row("2", "yes", "no", odds=1.5)], "yes")
    assert [(one.score, one.metric) for one in odds] == [(2.0, MARGIN), (-1.5, MARGIN)]


def test_the_worst_and_the_best_come_first() -> None:
    rows = [ScoredText(str(n), "", "", "", ("a",), None, float(n % 10), CIDER) for n in range(40)]
    chosen = choose(rows, 4)
    assert [one.score for one in chosen["Worst"]] == [0.0] * 4
    assert [one.score for one in chosen["Best"]] == [9.0] * 4
    names = [one.id for listed in chosen.values() for one in listed]
    assert len(names) == len(set(names)) == 12
    assert set(choose(rows[:1], 4)) == {"By chance"}


def test_questions_with_few_answers_have_a_confusion() -> None:
    intents = [row(f"u{n} [1] what is it?", "play", "play" if n % 2 else "stop") for n in range(8)]
    slots = [row(f"u{n} [2] who?", "x", f"name {n}") for n in range(8)]
    tables = answers_by_question(intents + slots)
    assert list(tables) == ["question 1, such as “what is it?”"]
    gold, answers = next(iter(tables.values()))
    assert (gold.count("stop"), answers) == (4, ["play"] * 8)


def test_a_run_that_goes_on_keeps_its_curve(tmp_path: Path) -> None:
    """Each start of a run writes a table of its own; one that begins anew replaces the steps that it takes again."""
    for number, steps in enumerate([(0, 1, 2), (2, 3), (4, 5)]):
        folder = tmp_path / "logs" / f"version_{number}"
        folder.mkdir(parents=True)
        lines = [f"0,{step},{number}.{step}" for step in steps]
        (folder / "metrics.csv").write_text("\n".join(["epoch,step,train/loss", *lines, ""]))
        os.utime(folder / "metrics.csv", (number + 1, number + 1))
    points = [(0, 0.0), (1, 0.1), (2, 1.2), (3, 1.3), (4, 2.4), (5, 2.5)]
    assert run_files(tmp_path).metrics["train/loss"] == points


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(capsys)
    assert shell.refuses("report", tmp_path / "none").startswith(f"{tmp_path / 'none'}: no such folder")
    assert "holds no run" in shell.refuses("report", tmp_path)


def test_lines_that_hold_no_prediction_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n\n[1]\n{"id": 2, "prediction": "a"}\n')
    assert [one.id for one in read_rows(tmp_path / "a.jsonl")] == ["2"]


def test_a_fit_and_a_test_end_with_a_report(
    tiny: CaptioningSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    root = tmp_path / "run"
    config = tiny.config()
    config["trainer"] |= {"default_root_dir": str(root), "max_epochs": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
    shell = Shell(capsys)
    code, out, err = shell("fit", tmp_path / "recipe.yaml", "--no_report", "false")
    assert code == 0, err
    assert out.endswith(f"report: {root / 'report.html'}\n")
    first = (root / "report.html").read_text(encoding="utf-8")
    Page(first).asks_for_nothing()
    assert "last validation" in first
    assert {"train/loss", "val/loss"} <= set(Page(first).points)
    words = [tmp_path / "recipe.yaml", "--no_report", "false", "--data.test", tiny.folder / "val.jsonl"]
    code, out, err = shell("test", *words, "--ckpt_path", "last")
    assert code == 0, err
    assert out.endswith(f"report: {root / 'report.html'}\n")
    assert "rows of the test" in (root / "report.html").read_text(encoding="utf-8")
    assert shell("report", root, "--out", tmp_path / "again.html")[:2] == (0, f"{tmp_path / 'again.html'}\n")
    pages = [(folder / name).read_text("utf-8") for folder, name in ((root, "report.html"), (tmp_path, "again.html"))]
    first, again = (re.sub(r"audio/ogg;base64,[^\"]*", "", page) for page in pages)  # Ogg numbers its streams by chance
    assert first == again


def test_a_page_that_cannot_be_drawn_fails_no_run(
    tiny: CaptioningSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    root = tmp_path / "run"
    (root / "report.html").mkdir(parents=True)  # where the page would be
    config = tiny.config(("audio",))
    config["trainer"] |= {"default_root_dir": str(root), "max_epochs": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
    capsys.readouterr()
    assert main(["fit", str(tmp_path / "recipe.yaml"), "--no_report", "false"]) == 0
    out, err = capsys.readouterr()
    assert "report: " not in out
    assert err.count("no report: ") == 1


def evaluation_lines(folder: Path) -> list[dict[str, object]]:
    """Predictions of a picture and a sound from the folder of the file, one that is gone, and an address."""
    Image.new("RGB", (640, 320), (200, 30, 30)).save(folder / "red.png")
    soundfile.write(folder / "tone.wav", np.sin(np.arange(16000) / 5).astype(np.float32), 16000)
    rows: list[dict[str, object]] = []
    shown = [
        ("red.png", "a red wall", "a red wall"),
        ("red.png", NASTY, "a red wall"),
        ("tone.wav", "a tone", "a tone"),
        ("gone.wav", "rain", "a bell"),
        ("https://example.org/a.png", "a cat", "a dog"),
        ("", "a roof", "a door"),
    ]
    for number, (file, text, right) in enumerate(shown):
        rows.append({"id": f"row {number}", "caption": text, "references": [right, "another <b>"], "file": file})
    return rows


def test_an_evaluation_has_a_page_of_its_worst_and_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, out = evaluation_lines(tmp_path), tmp_path / "page.html"
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shell = Shell(capsys)
    words = ("evaluate", tmp_path / "p.jsonl", "--metrics", "cider_d,bleu_1")
    plain = shell(*words)
    assert shell(*words, "--html", out) == plain  # standard output is the figures alone, as without a page
    assert plain[0] == 0
    text = out.read_text(encoding="utf-8")
    page, shown = Page(text), re.sub(r"data:[^\"]*", "", text)
    page.asks_for_nothing()
    assert "<script" not in text
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert [src.partition(";")[0] for src in pictures].count("data:image/jpeg") == 2
    assert [src.partition(";")[0] for src in pictures].count("data:image/png") == 1
    assert [tag for tag, _ in page.tags].count("audio") == 1
    for line in lines:
        assert str(line["id"]) in shown
    assert "gone.wav: no such file" in shown
    assert "example.org/a.png: no such file" in shown  # nothing is fetched
    assert "another <b>" in page.texts
    figure = next(row.split()[1] for row in plain[1].splitlines() if row.startswith("cider_d"))
    assert figure in page.texts
    pictures_part = shown[shown.index("<h2>Inputs: image</h2>") : shown.index("<h2>Inputs: audio</h2>")]
    assert pictures_part.index("<h3>Worst</h3>") < pictures_part.index("row 1") < pictures_part.index("<h3>Best</h3>")
    assert pictures_part.index("<h3>Best</h3>") < pictures_part.index("row 0")


def test_the_page_of_an_evaluation_is_refused_where_it_cannot_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": 1, "prediction": "a", "references": ["a"]}) + "\n")
    shell = Shell(capsys)
    assert "none/page.html" in shell.refuses("evaluate", tmp_path / "p.jsonl", "--html", tmp_path / "none/page.html")
    message = shell.refuses("evaluate", tmp_path / "p.jsonl", "--task", "personal", "--html", "page.html")
    assert "--html: --task personal compares users" in message
