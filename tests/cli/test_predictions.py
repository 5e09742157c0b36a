"""``mmprefix predict``: what is done is kept, and the same command goes on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmprefix import InputError
from mmprefix.cli.inference.predictions import row_options, rows_in
from mmprefix.data.samplers import EvalSampler, RowKey
from tiny import models as tiny_models
from tiny.models import media_files
from tiny.shell import Shell

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    return tiny_models.save_model(folder / "m", tiny_models.frozen_parts(folder), "image", "audio")


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def words(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Command that predicts six rows in three batches of two; the last picture is cut off behind its header."""
    monkeypatch.chdir(tmp_path)
    names = [file for file in media_files(tmp_path) if Path(file).suffix == ".png"]
    pictures = [Path(f"{n}.png") for n in range(6)]
    for picture in pictures:
        picture.write_bytes(Path(names[0]).read_bytes())
    rows = [{"id": f"r{n}", "image": picture.name, "caption": f"c{n}"} for n, picture in enumerate(pictures)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cut_off(pictures[5])
    data = ["--data.predict", "rows.jsonl", "--data.eval_batch_size", "2", "--trainer.accelerator", "cpu"]
    return ["predict", "--model", str(saved), *data, "--out", "out.jsonl"]


def cut_off(picture: Path) -> None:
    """Leave the header and half of the rest: the check of headers passes, decoding fails."""
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])


def stopped(shell: Shell, *words: str) -> str:
    """Lines of a run that ends at the picture that is cut off."""
    code, _, err = shell(*words)
    assert code == 2
    assert "Traceback" not in err
    assert "4 predictions are kept: out.jsonl.partial; the same command goes on" in err
    return err


def rows_of(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_a_run_that_ended_goes_on_where_it_was(words: list[str], shell: Shell) -> None:
    whole = Path("0.png").read_bytes()
    assert "rows.jsonl:6: 5.png: " in stopped(shell, *words)
    assert [row["row"] for row in rows_of("out.jsonl.partial")] == [0, 1, 2, 3]
    assert not Path("out.jsonl").exists()
    for n in range(4):  # those that are done are not read again
        cut_off(Path(f"{n}.png"))
    Path("5.png").write_bytes(whole)
    with Path("out.jsonl.partial").open("a") as stream:
        stream.write('{"row": 4, "id": "r4", "predi')  # a killed process leaves the beginning of a line
    code, _, err = shell(*words)
    assert code == 0, err
    assert "4 predictions are there already: out.jsonl.partial" in err
    assert [row["id"] for row in rows_of("out.jsonl")] == [f"r{n}" for n in range(6)]
    assert all("row" not in row for row in rows_of("out.jsonl"))
    assert len({row["prediction"] for row in rows_of("out.jsonl")}) == 1  # six times one picture
    assert sorted(file.name for file in Path().iterdir() if "out.jsonl" in file.name) == ["out.jsonl"]


def test_rows_of_other_options_do_not_come_into_one_file(words: list[str], shell: Shell, saved: Path) -> None:
    stopped(shell, *words)
    for more, message in (
        (["--model.generate.max_new_tokens", "2"], "was begun with --model.generate.max_new_tokens "),
        (["--data.prompt", "a dog"], "was begun with --data.init_args.prompt "),
    ):
        assert f"out.jsonl.partial: {message}" in shell.refuses(*words, *more)
    err = stopped(shell, *words, "--data.num_workers", "0", "--data.bucket", "false")  # how fast is no matter
    assert "5.png: " in err
    Path("rows.jsonl").write_text(Path("rows.jsonl").read_text().replace("c1", "other"))
    assert "was begun with rows of the manifests " in shell.refuses(*words)
    Path("5.png").write_bytes(Path("0.png").read_bytes())
    code, out, err = shell(*words, "--overwrite")
    assert code == 0, err
    assert "are there already" not in out
    assert len(rows_of("out.jsonl")) == 6


def test_a_run_killed_before_its_last_write_ends(words: list[str], shell: Shell) -> None:
    """All rows are done, by two processes of an earlier run; another file of theirs is removed too."""
    stopped(shell, *words)
    Path("5.png").write_bytes(Path("0.png").read_bytes())
    first = rows_of("out.jsonl.partial")
    rest = [{**first[0], "row": n, "id": f"r{n}"} for n in (4, 5)]
    Path("out.jsonl.partial-1").write_text("".join(json.dumps(row) + "\n" for row in rest))
    options = Path(".out.jsonl.partial.options.json").read_text()
    Path(".out.jsonl.partial-1.options.json").write_text(options)
    code, _, err = shell(*words)
    assert code == 0, err
    assert [row["id"] for row in rows_of("out.jsonl")] == [f"r{n}" for n in range(6)]
    assert sorted(file.name for file in Path().iterdir() if "out.jsonl" in file.name) == ["out.jsonl"]


@pytest.mark.parametrize("line", ["[1]", "{}", '{"row": "x"}', "no row"])
def test_a_line_that_is_no_row_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl.partial"
    file.write_text(f'{{"row": 3, "id": "a"}}\n{line}\n{{"row":')
    with pytest.raises(InputError, match=r"out.jsonl.partial:2: is no row that this command writes; --overwrite"):
        list(rows_in(file))
    file.write_text('{"row": 3, "id": "a"}\n{"row":')
    assert list(rows_in(file)) == [(3, {"id": "a"})]


def test_rows_that_are_done_are_dealt_out_to_nobody() -> None:
    keys = [RowKey(inputs=frozenset({"image"}), seconds=0.0, captions=1, tokens=1) for _ in range(7)]
    shares = [EvalSampler(keys, 2, rank=rank, world=2, done={1, 4}) for rank in range(2)]
    assert sorted(row for share in shares for batch in share for row in batch.rows) == [0, 2, 3, 5, 6]


def test_options_of_speed_are_not_remembered(tmp_path: Path) -> None:
    data = {"class_path": "mmprefix.data.PairData", "init_args": {"prompt": "a", "batch_size": 3, "num_workers": 1}}
    config = {"model": {"decoder": {"init_args": {"model": "x"}}}, "data": data, "seed_everything": 1}
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_bytes(b"1")
    options = row_options(config | {"trainer": {"precision": None, "devices": 1}}, checkpoint)
    assert {name: value for name, value in options.items() if name != "model"} == {
        "--model.decoder.init_args.model": "x", "--data.class_path": "mmprefix.data.PairData",
        "--data.init_args.prompt": "a", "--seed_everything": 1, "--trainer.precision": None,
    }  # fmt: skip
    checkpoint.write_bytes(b"2")
    assert row_options(config | {"trainer": {}}, checkpoint)["model"] != options["model"]
