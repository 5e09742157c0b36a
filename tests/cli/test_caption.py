"""``mmprefix caption``: inputs of every form, files of rows that are gone on with, bad inputs, stop signals."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mmprefix
from mmprefix import Predictor
from mmprefix.cli.main import main
from tiny import models as tiny_models
from tiny.forked import Forked
from tiny.models import media_files, random_picture
from tiny.shell import Shell

CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = tiny_models.frozen_parts(tmp_path_factory.mktemp("parts"))
    return tiny_models.save_model(tmp_path_factory.mktemp("saved") / "both", parts, "image", "audio")


@pytest.fixture(scope="module")
def model(saved: Path) -> Predictor:
    return mmprefix.load(saved, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sounds and pictures in folders of folders, one of them without suffix, beside files that are neither."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "deep" / "er").mkdir(parents=True)
    files = media_files(folder)
    for file in files[6:]:
        shutil.move(file, folder / "deep" / "er" / file.name)
    shutil.copy(folder / "picture0.png", folder / "no suffix but a picture")
    for name in ("notes.txt", ".hidden.png", "table.csv", "data.json"):
        (folder / name).write_text("id,caption\n1,x\n")
    return folder


@pytest.fixture(scope="module")
def media(folder: Path) -> list[str]:
    """The ten inputs in ``folder``, in the order in which they are found."""
    shallow = [*folder.glob("[!.]*.png"), *folder.glob("*.wav"), folder / "no suffix but a picture"]
    return [*sorted(map(str, shallow)), *sorted(map(str, folder.glob("deep/er/*")))]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def rows_of(file: Path) -> dict[str, str]:
    """Name → first text of each row of a file of captions; a name that occurs twice fails."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".csv":
        pairs = [(row["file"], row["caption"]) for row in csv.DictReader(text.splitlines())]
    elif file.suffix == ".txt":
        pairs = [(line.split("\t")[0], line.split("\t")[1]) for line in text.splitlines()]
    else:
        pairs = [(row["file"], row["caption"]) for row in map(json.loads, text.splitlines())]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


# ----------------------------------------------------------------------------------------------------------- inputs


def test_folders_and_patterns_are_expanded(
    shell: Shell, saved: Path, folder: Path, media: list[str], model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = dict(zip(media, model(media), strict=True))
    code, out, err = shell("caption", saved, folder, *CPU)
    assert code == 0, err
    assert [tuple(line.split(": ", 1)) for line in out.splitlines()] == list(expected.items())
    monkeypatch.chdir(folder)
    code, out, err = shell("caption", saved, "*.wav", "deep/**/*.png", "*.wav", *CPU)  # named twice: captioned once
    names = [line.split(": ")[0] for line in out.splitlines()]
    assert code == 0, err
    assert names == [*sorted(map(str, Path().glob("*.wav"))), *sorted(map(str, Path().glob("deep/**/*.png")))]


def test_files_of_a_folder_that_the_model_does_not_read_are_left_out(
    shell: Shell, saved: Path, media: list[str], tmp_path: Path
) -> None:
    pictures = tiny_models.save_model(tmp_path / "image", tiny_models.frozen_parts(tmp_path / "parts"), "image")
    (tmp_path / "mixed").mkdir()
    for file in media:
        shutil.copy(file, tmp_path / "mixed")
    code, out, err = shell("caption", pictures, tmp_path / "mixed", *CPU)
    assert code == 0, err
    assert {Path(line.split(": ")[0]).suffix for line in out.splitlines()} == {".png", ""}
    (tmp_path / "sounds").mkdir()
    shutil.copy(next(file for file in media if file.endswith(".wav")), tmp_path / "sounds")
    message = shell.refuses("caption", pictures, tmp_path / "sounds", *CPU)
    assert "sounds: this model reads a picture, and the folder holds 1 of kind audio" in message


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.jsonl"])
def test_manifests_are_read_and_their_rows_named_by_id(
    shell: Shell, saved: Path, media: list[str], model: Predictor, tmp_path: Path, name: str
) -> None:
    rows = [{"id": f"r{n}", "audio" if file.endswith(".wav") else "image": file} for n, file in enumerate(media[:4])]
    manifest = tmp_path / name
    if name == "m.jsonl":
        manifest.write_text("".join(json.dumps({**row, "captions": ["a dog", "it"]}) + "\n" for row in rows))
    else:
        with manifest.open("w", newline="") as stream:
            table = csv.DictWriter(
                stream, ["id", "image", "audio", "caption"], delimiter="\t" if "tsv" in name else ","
            )
            table.writeheader()
            table.writerows({**row, "caption": "a dog"} for row in rows)
    out = tmp_path / "out.jsonl"
    code, message, err = shell("caption", saved, manifest, "--out", out, *CPU)
    assert (code, message) == (0, f"wrote 4 lines: {out}\n"), err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["id"], line["file"], line["caption"]) for line in lines] == [
        (f"r{n}", file, text) for n, (file, text) in enumerate(zip(media[:4], model(media[:4]), strict=True))
    ]
    assert lines[0]["references"] == (["a dog", "it"] if name == "m.jsonl" else ["a dog"])
    code, figures, err = shell("evaluate", out, "--metrics", "bleu_1", "--json")  # a caption is a prediction
    assert code == 0, err
    assert "scores" in json.loads(figures)


def test_a_manifests_users_stand_in_the_lines_that_are_scored_by_user(
    shell: Shell, saved: Path, media: list[str], tmp_path: Path
) -> None:
    """Whom the model was told, and whose reference it is; two users of one picture are two rows."""
    rows = [{"id": f"r{n}", "image": media[0], "user": user, "captions": [f"{user}!"]} for n, user in enumerate("ab")]
    for name, extra in (("own", [{}, {}]), ("shuffled", [{"user": "b", "true_user": "a"}, {"user": "a"}])):
        lines = [json.dumps({**row, **more}) + "\n" for row, more in zip(rows, extra, strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        out = tmp_path / f"{name}.out.jsonl"
        assert shell("caption", saved, tmp_path / f"{name}.jsonl", "--out", out, *CPU)[0] == 0
    own = [json.loads(line) for line in (tmp_path / "own.out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["user"], row.get("true_user")) for row in own] == [("r0", "a", None), ("r1", "b", None)]
    first = json.loads((tmp_path / "shuffled.out.jsonl").read_text().splitlines()[0])
    assert (first["user"], first["true_user"], first["references"]) == ("b", "a", ["a!"])
    words = [tmp_path / "own.out.jsonl", "--task", "personal", "--train", tmp_path / "own.jsonl", "--json"]
    code, figures, err = shell("evaluate", *words, "--shuffled", tmp_path / "shuffled.out.jsonl")
    assert code == 0, err
    assert set(json.loads(figures)["gap"].values()) == {0.0}  # this model knows nothing of users


def test_inputs_that_are_none_are_told_before_torch_is_imported(saved: Path, media: list[str], tmp_path: Path) -> None:
    """Every message of a wrong path, in one process that never imports torch."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "old.csv").write_text("file,caption\nx,y\n")
    cases = [
        (["caption", str(tmp_path / "none"), media[0]], f"'{tmp_path}/none': no such folder"),
        (["caption", str(saved.with_name("bot")), media[0]], f"did you mean {str(saved)!r}?"),
        (["caption", str(saved.parent), media[0]], f"(it has no mmprefix.yaml); did you mean {str(saved)!r}?"),
        (["caption", "runs/nothing/model", media[0]], "'runs/nothing/model': no such folder"),
        (["caption", "nothing", media[0]], "'nothing': no such folder"),
        (["detect", str(tmp_path / "none"), media[0]], "none': no such folder"),
        (["understand", str(tmp_path / "none"), media[0]], "none': no such folder"),
        (["transcribe", str(tmp_path / "none"), media[0]], "none': no such folder"),
        (["caption", str(saved)], "no input given"),
        (["caption", str(saved), "none.wav"], "none.wav: no such file"),
        (["caption", str(saved), "*.nothing"], "*.nothing: matches no file"),
        (["caption", str(saved), str(tmp_path / "empty")], "the folder holds no picture, sound or video"),
        (["caption", str(saved), "http://127.0.0.1/a.png"], "nothing is downloaded unless --allow-urls is given"),
        (["caption", str(saved), media[0], "--out", str(tmp_path / "old.csv")], "which options made it is not known"),
        (["caption", str(saved), media[0], "--out", str(tmp_path)], "is a folder; give a file"),
    ]
    program = (
        "import json, sys\nfrom mmprefix.cli.main import main\n"
        "codes = [main(words) for words in json.loads(sys.argv[1])]\n"
        "print(codes, sorted({'torch', 'transformers', 'lightning', 'PIL'} & set(sys.modules)))"
    )
    words = json.dumps([words for words, _ in cases])
    done = subprocess.run([sys.executable, "-c", program, words], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[2] * len(cases)} []\n"
    for line, (_, message) in zip(done.stderr.splitlines(), cases, strict=True):
        assert message in line


# ----------------------------------------------------------------------------------------------------- files of rows


@pytest.mark.parametrize("name", ["rows.csv", "rows.txt", "rows.jsonl"])
def test_a_run_goes_on_wherever_its_file_was_cut_off(
    shell: Shell, saved: Path, media: list[str], tmp_path: Path, name: str
) -> None:
    """A file that a killed process left: nothing lost, nothing doubled, a half line written anew."""
    out = tmp_path / name
    code, _, err = shell("caption", saved, *media[:5], "--out", out, *CPU)
    assert code == 0, err
    whole = out.read_bytes()
    assert list(rows_of(out)) == media[:5]
    ends = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n")]
    every = (0, 3, ends[0], ends[1] + 5, ends[2], len(whole) - 1)
    for cut in every if name == "rows.csv" else every[3:4]:
        out.write_bytes(whole[:cut])
        code, message, err = shell("caption", saved, *media[:5], "--out", out, *CPU)
        assert code == 0, err
        again = rows_of(out)
        assert list(again) == media[:5]
        before = max(0, len([end for end in ends if end <= cut]) - (name == "rows.csv"))
        beside = f" beside {before} that were there" if before else ""
        assert message == f"wrote {5 - before} lines{beside}: {out}\n"
    code, message, _ = shell("caption", saved, *media[:6], "--out", out, *CPU)  # and with one more input
    assert (code, message) == (0, f"wrote 1 lines beside 5 that were there: {out}\n")
    assert list(rows_of(out)) == media[:6]


def test_rows_of_other_options_do_not_mix(shell: Shell, saved: Path, media: list[str], tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    words = ("caption", saved, media[0], "--out", out, *CPU)
    assert shell(*words)[0] == 0
    before = out.read_bytes()
    for more, message in (
        (("--num-beams", "3"), "was begun with --num-beams left out, now 3; --overwrite writes the file anew"),
        (("--prompt", "a dog"), "was begun with --prompt left out, now a dog"),
        (("--format", "jsonl"), "was begun with --format csv, now jsonl"),
        (("--num-return", "2"), "was begun with --num-return 1, now 2"),
    ):
        assert message in shell.refuses(*words, *more)
        assert out.read_bytes() == before
    code, _, err = shell(*words, "--num-return", "2", "--overwrite")
    assert code == 0, err
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert list(row) == ["file", "caption", "score", "caption_2", "score_2"]
    assert float(row["score"]) > float(row["score_2"])
    other = shutil.copytree(saved, tmp_path / "other")
    (other / "mmprefix.yaml").write_text((other / "mmprefix.yaml").read_text() + "\n# changed\n")
    message = shell.refuses("caption", other, media[0], "--out", out, "--num-return", "2", *CPU)
    assert "was begun with a model of other tensors" in message
    out.write_text(out.read_text() + "no row\n")
    assert "rows.csv:3: is no row that this command writes" in shell.refuses(*words, "--num-return", "2")


def test_two_processes_do_not_write_one_file(shell: Shell, saved: Path, media: list[str], tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "rows.csv"
    words = ("caption", saved, media[0], "--out", out, *CPU)
    assert shell(*words)[0] == 0
    with out.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert "another process is writing it" in shell.refuses(*words)
    assert shell(*words)[0] == 0


def test_a_disk_that_is_full_is_one_line(shell: Shell, saved: Path, media: list[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    assert "/dev/full: could not be written (No space left on device)" in shell.refuses(
        "caption", saved, media[0], "--out", "/dev/full", *CPU
    )


def test_names_with_any_character_are_gone_on_with(shell: Shell, saved: Path, media: list[str], tmp_path: Path) -> None:
    no_text = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")
    names = [tmp_path / '猫, "the" cat.wav', tmp_path / "a\tb\nc.wav", Path(no_text)]
    sound = next(file for file in media if file.endswith(".wav"))
    for name in names:
        shutil.copy(sound, name)
    for form in ("csv", "txt", "jsonl"):
        out = tmp_path / f"rows.{form}"
        code, _, err = shell("caption", saved, *names, "--out", out, *CPU)
        assert code == 0, err
        code, message, _ = shell("caption", saved, *names, "--out", out, *CPU)
        assert (code, message) == (0, f"wrote 0 lines beside 3 that were there: {out}\n")


# --------------------------------------------------------------------------------------------- bad inputs, the options


def test_bad_inputs_are_a_line_each_and_a_count(
    shell: Shell, saved: Path, media: list[str], model: Predictor, tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("a picture of a cat")
    (tmp_path / "empty.wav").write_bytes(b"")
    inputs = [media[0], tmp_path / "text.jpg", media[1], tmp_path / "empty.wav", tmp_path / "none.png", media[2]]
    out = tmp_path / "rows.jsonl"
    code, message, err = shell("caption", saved, *inputs, "--out", out, "--batch-size", "1", *CPU)
    assert (code, message) == (3, f"wrote 3 lines: {out}\n")
    assert rows_of(out) == dict(zip(media[:3], model(media[:3]), strict=True))
    lines = [line for line in err.splitlines() if line.startswith("mmprefix: ")]
    assert [line.split(":")[1].strip() for line in lines[:3]] == [
        str(tmp_path / name) for name in ("none.png", "text.jpg", "empty.wav")
    ]
    assert lines[3:] == ["mmprefix: 3 of 6 inputs could not be read; the others are done"]
    random_picture(1).save(tmp_path / "none.png")  # mended: the same command does what is missing
    code, message, _ = shell("caption", saved, *inputs, "--out", out, "--batch-size", "1", *CPU)
    assert (code, message) == (3, f"wrote 1 lines beside 3 that were there: {out}\n")
    bad = [tmp_path / "text.jpg", tmp_path / "empty.wav"]
    code, message, err = shell("caption", saved, *bad, "--out", tmp_path / "none.csv", *CPU)
    assert (code, message) == (2, "")
    assert err.splitlines()[-1] == "mmprefix: none of 2 inputs could be read"
    assert not (tmp_path / "none.csv").exists()


def test_rows_of_a_manifest_that_are_bad_do_not_end_the_others(
    shell: Shell, saved: Path, media: list[str], tmp_path: Path
) -> None:
    manifest = tmp_path / "m.jsonl"
    sound = next(file for file in media if file.endswith(".wav"))
    manifest.write_text(
        f'{{"id": "a", "audio": "{sound}"}}\n{{"id": "b", "audio": "none.wav"}}\nno JSON\n'
        '{"id": "d", "context": "x"}\n'
    )
    code, out, err = shell("caption", saved, "--manifest", manifest, *CPU)
    assert code == 3, err
    assert out.startswith("a: ")
    assert f"{manifest}:2: audio: {tmp_path / 'none.wav'}: no such file" in err
    assert f"{manifest}:3: not JSON" in err
    assert "row 'd' has none of image, audio" in err
    assert err.splitlines()[-1] == "mmprefix: 3 of 4 inputs could not be read; the others are done"


def test_options_of_decoding_in_both_spellings(shell: Shell, saved: Path, media: list[str], model: Predictor) -> None:
    cases: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("--num_beams", "3", "--length_penalty", "0.5"), {"num_beams": 3, "length_penalty": 0.5}),
        (("--temperature", "0.7", "--top-p", "0.9", "--seed", "3"), {"temperature": 0.7, "top_p": 0.9, "seed": 3}),
        (("--num-beams=2", "--temperature=1.5"), {"num_beams": 2, "temperature": 1.5}),
        (
            ("--min-new-tokens", "6", "--max_new_tokens", "9", "--no-repeat-ngram-size", "2"),
            {"min_new_tokens": 6, "max_new_tokens": 9, "no_repeat_ngram_size": 2},
        ),
    ]
    for words, options in cases:
        code, out, err = shell("caption", saved, *media[:3], "--json", *words, *CPU)
        assert code == 0, err
        expected = model.candidates(media[:3], num_return=1, **options)
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line["caption"] for line in lines] == [row[0].text for row in expected]
        assert [line["score"] for line in lines] == pytest.approx([row[0].score for row in expected], abs=1e-4)
    assert "temperature=0.0: must be above 0" in shell.refuses("caption", saved, media[0], "--temperature", "0", *CPU)
    message = shell.refuses("caption", saved, media[0], "--top-p", "0.5", "--num-beams", "2", *CPU)
    assert "num_beams=2: sample=True draws texts without beams" in message


def test_progress_is_told_on_standard_error_when_asked_for(shell: Shell, saved: Path, media: list[str]) -> None:
    code, out, err = shell("caption", saved, *media[:3], "--progress", *CPU)
    assert code == 0
    assert "3 of 3 inputs, " in err
    assert "inputs" not in out
    assert "of 3 inputs" not in shell("caption", saved, *media[:3], *CPU)[2]


# ---------------------------------------------------------------------------------------------------- stop signals


@pytest.fixture
def many(media: list[str], tmp_path: Path) -> Path:
    """Folder of 80 sounds."""
    (tmp_path / "many").mkdir()
    sound = next(file for file in media if file.endswith(".wav"))
    for number in range(80):
        os.link(sound, tmp_path / "many" / f"{number:03}.wav")
    return tmp_path / "many"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_signal_keeps_what_is_done(
    shell: Shell, saved: Path, many: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "rows.csv"
    words = ("caption", saved, many, "--out", out, "--batch-size", "2", *CPU)

    def stop() -> None:
        while not out.exists() or out.read_bytes().count(b"\n") < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    stopper = threading.Thread(target=stop)
    stopper.start()
    ended, message, err = shell(*words)
    stopper.join()
    rows = rows_of(out)
    assert (ended, message) == (code, "")
    assert err.splitlines()[-1] == (
        f"mmprefix: stopped by {number.name}; {len(rows)} of 80 inputs are in {out}; the same command goes on"
    )
    assert 2 <= len(rows) < 80
    ended, message, _ = shell(*words)
    assert (ended, message) == (0, f"wrote {80 - len(rows)} lines beside {len(rows)} that were there: {out}\n")
    assert list(rows_of(out)) == [str(file) for file in sorted(many.iterdir())]


@pytest.mark.slow
def test_a_killed_process_is_gone_on_with(shell: Shell, saved: Path, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["caption", str(saved), str(many), "--out", str(out), "--batch-size", "2", *CPU]
    process = Forked(partial(main, words), tmp_path / "log")
    while not out.exists() or out.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    assert process.kill() == -signal.SIGKILL
    before = out.read_bytes().count(b"\n")
    code, message, err = shell(*words)
    assert (code, message) == (0, f"wrote {80 - before} lines beside {before} that were there: {out}\n"), err
    assert list(rows_of(out)) == [str(file) for file in sorted(many.iterdir())]
