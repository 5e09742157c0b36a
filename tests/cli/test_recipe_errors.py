"""Wrong recipes, data and checkpoints stop a training before its first step, with one plain line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmprefix import InputError
from mmprefix.cli.main import main
from mmprefix.cli.training.recipe_errors import explain, recipes_of, unknown_option
from mmprefix.cli.training.train import switches_as_options
from mmprefix.errors import did_you_mean
from tiny.captioning_system import CaptioningSystem, quietly

pytestmark = list(quietly)
AUDIO = "model.branches.audio"
DEEP = {"class_path": "mmprefix.mappers.p_tuning_v2.DeepTable"}


class Fit:
    """Runner of ``mmprefix fit`` on the tiny recipe with changes; ``refused`` gives its error message."""

    def __init__(self, tiny: CaptioningSystem, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.tiny, self.root, self.capsys = tiny, root, capsys
        self.file = root / "recipe.yaml"

    def config(self) -> dict[str, Any]:
        config = self.tiny.config(("audio",))
        config["trainer"] |= {"default_root_dir": str(self.root), "max_epochs": 1}
        return config

    def changed(self, **changes: Any) -> dict[str, Any]:
        """Recipe with the value of each dotted option replaced; ``old>new`` renames the last part of an option."""
        config = copy.deepcopy(self.config())
        for option, value in changes.items():
            *before, last = option.split(".")
            section: Any = config
            for key in before:
                section = section[key]
            old, arrow, new = last.partition(">")
            section[new if arrow else last] = section.pop(old) if arrow else value
        return config

    def run(self, recipe: Any, *words: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error; ``recipe`` is data, or the text of the file."""
        self.file.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, sort_keys=False))
        self.capsys.readouterr()
        code = main(["fit", "--config", str(self.file), *words])
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err

    def refused(self, recipe: Any, *words: str) -> str:
        """Error message of a run that stops with one line and writes no checkpoint."""
        code, out, err = self.run(recipe, *words)
        assert code == 2, err
        assert "Traceback" not in out + err
        lines = [line for line in err.splitlines() if line.startswith("mmprefix: ")]
        assert len(lines) == 1, err
        assert err.splitlines()[-1] == lines[0]
        assert not list(self.root.rglob("*.ckpt"))
        return lines[0].removeprefix("mmprefix: ").replace(f"{self.file}: ", "recipe: ")


@pytest.fixture
def fit(tiny: CaptioningSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fit:
    return Fit(tiny, tmp_path, capsys)


# ------------------------------------------------------------------------------------------------------------ recipes

MISSPELT = [
    ("model>modle", "recipe: option 'modle' is not known; did you mean 'model'?"),
    ("seed_everything>sed_everything", "'sed_everything' is not known; did you mean 'seed_everything'?"),
    ("model.branches>branchs", "recipe: option 'model.branchs' is not known; did you mean 'model.branches'?"),
    (f"{AUDIO}.encoder>encodr", f"recipe: option '{AUDIO}.encodr' is not known; did you mean 'encoder'?"),
    (f"{AUDIO}.encoder.init_args>init_arg", f"'{AUDIO}.encoder.init_arg' is not known; did you mean 'init_args'?"),
    (f"{AUDIO}.encoder.init_args.model>modle", "encoder: option 'modle' is not known; did you mean 'model'?"),
    (f"{AUDIO}.mapper.init_args.length>lenght", "mapper: option 'lenght' is not known; did you mean 'length'?"),
    ("model.decoder.init_args.model>mdel", "model.decoder: option 'mdel' is not known; did you mean 'model'?"),
    ("model.optimizer.init_args.lr>lrr", "model.optimizer: option 'lrr' is not known; did you mean 'lr'?"),
    ("model.generate.max_new_tokens>max_tokens", "is not known; did you mean 'model.generate.max_new_tokens'?"),
    ("trainer.max_epochs>max_epoch", "'trainer.max_epoch' is not known; did you mean 'trainer.max_epochs'?"),
    ("data.init_args.batch_size>batchsize", "data: option 'batchsize' is not known; did you mean 'batch_size'?"),
]
CLASSES = [
    (
        f"{AUDIO}.encoder",
        "mmprefix.encoders.cnn.Cnm",
        "encoder: class_path {}: no such class; did you mean 'mmprefix.encoders.cnn.Cnn'?; encoders: Aligned, AST",
    ),
    (
        f"{AUDIO}.encoder",
        "mmprefix.encoders.cn.Cnn",
        "class_path {}: no such class; did you mean 'mmprefix.encoders.cnn.Cnn'?",
    ),
    (f"{AUDIO}.encoder", "Cnm", "class_path {}: no such class; did you mean 'mmprefix.encoders.cnn.Cnn'?"),
    (
        f"{AUDIO}.mapper",
        "mmprefix.mappers.resampler.Resampel",
        "{}: no such class; did you mean 'mmprefix.mappers.resampler.Resampler'?",
    ),
    (f"{AUDIO}.mapper", "mmprefix.mappers.x.Resampler", "did you mean 'mmprefix.mappers.resampler.Resampler'?"),
    (
        f"{AUDIO}.mapper",
        "mmprefix.mappers.x.Qqqq",
        "class_path {}: no such class; mappers: Aligner, Calibrated, CartridgePrefix",
    ),
    (
        f"{AUDIO}.mapper",
        "mmprefix.encoders.cnn.Cnn",
        "mapper: class_path {}: is an encoder, no mapper; mappers: Aligner, Calibrated, CartridgePrefix",
    ),
    (
        "model.decoder",
        "mmprefix.decoders.causal.CasualDecoder",
        "{}: no such class; did you mean 'mmprefix.decoders.CausalDecoder'?; decoders: ",
    ),
    ("model.optimizer", "torch.optim.AdamWW", "model.optimizer: class_path {}: no such class; did you mean 'AdamW'?"),
    (
        "data",
        "mmprefix.data.pairs.PairDate",
        "data: class_path {}: no such class; did you mean 'mmprefix.data.PairData'?",
    ),
]
WRONG = [
    (f"{AUDIO}.mapper.init_args.length", "three", "mapper: option length: expected int, got three"),
    ("model.decoder.init_args.frozen", "perhaps", "model.decoder: option frozen: expected bool, got perhaps"),
    ("model.schedule", "cosinus", "option model.schedule: expected one of 'constant', 'linear', 'cosine', got cosinus"),
    ("trainer.devices", "", "trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
    ("trainer.devices", -7, "trainer: "),
    ("trainer.strategy", "sideways", "trainer: You selected an invalid strategy name"),
    ("trainer.precision", "3", "trainer.precision: expected"),
    ("model.generate", 3, "option model.generate: expected options by name, got 3"),
    ("model.generate", [1], "option model.generate: expected options by name, got [1]"),
    ("model", 5, "option model: expected options by name, got 5"),
    ("model.generate.num_beams", 0, "num_beams=0: must be at least 1"),
    ("trainer.max_epochs", "two", "option trainer.max_epochs: expected int or null, got two"),
    ("data.init_args.batch_size", "many", "data: option batch_size: expected int, got many"),
    ("data.init_args.batch_size", 0, "data.batch_size 0: give a number from 1 on"),
    ("data.init_args.on_bad", "sikp", "data: option on_bad: expected one of 'stop', 'skip', got sikp"),
    ("data.init_args.train", 3, "data: option train: expected str or list[str] or null, got 3"),
    ("data", {"batch_size": 3}, "no data: give data.root FOLDER"),  # plain options are those of PairData
    ("data", {"bach_size": 3}, "data: option 'bach_size' is not known; did you mean 'batch_size'?"),
    (f"{AUDIO}.mapper", 3, "model.branches: option mapper: expected Mapper or null, got 3"),
    ("model.branches", ["audio"], "option model.branches: expected dict, got ['audio']"),
    ("model.branches", {}, "model.branches: at least one branch is needed, such as image or audio"),
    (AUDIO, "cnn", f"recipe: option '{AUDIO}': expected encoder and mapper, got cnn"),
    (AUDIO, {"mapper": {"class_path": "x.Y"}}, f"recipe: option '{AUDIO}': has no encoder"),
    (f"{AUDIO}.mapper", None, f"{AUDIO}: has no mapper, and the decoder"),
    (
        "model.prefix",
        {"class_path": "mmprefix.mappers.prefix_tuning.DeepTabel"},
        "no such class; did you mean 'mmprefix.mappers.p_tuning_v2.DeepTable'?; mappers: Aligner, Calibrated",
    ),
    ("model.prefix", {"class_path": "mmprefix.mappers.mlp.MLP"}, "MLP reads the encoder's summary, and this encoder"),
    ("model.prefix", DEEP | {"init_args": {"lenght": 3}}, "option 'lenght' is not known; did you mean 'length'?"),
    ("model.prefix", DEEP | {"init_arg": {"length": 3}}, "'model.prefix.init_arg' is not known; did you mean"),
    (
        "model.prefix",
        DEEP | {"init_args": {"layers": 3}},
        "option 'layers' is not known",
    ),
    ("model.wording", {"context": "said: {text}"}, "wording.context 'said: {text}': must hold {context} once"),
    (
        "model.wording",
        {"answer": "{answer}"},
        "option 'model.wording.answer' is not known; options: context, history, history_texts, question",
    ),
    ("model.transcriber", {"class_path": "mmprefix.decoders.CausalDecoder"}, "is a decoder, no transcriber"),
    ("model.modality_dropout", 1, "model.modality_dropout 1.0: give a probability from 0 on, below 1"),
    ("model.answers", ["yes"], "model.answers ['yes']: give two words"),
    (
        "model.lr",
        0.1,
        "recipe: option 'model.lr' is not known; options: answers, branches, compile, decoder, generate, label",
    ),
    ("model.decoder.init_args.model", "/nowhere/gpt2", "'/nowhere/gpt2': no such folder"),
    ("trainer.accelerator", "abacus", "abacus"),
]


@pytest.mark.parametrize(("option", "message"), MISSPELT, ids=[option.split(".")[-1] for option, _ in MISSPELT])
def test_a_misspelt_option_names_the_nearest(fit: Fit, option: str, message: str) -> None:
    assert message in fit.refused(fit.changed(**{option: None}))


@pytest.mark.parametrize(("option", "value", "message"), WRONG, ids=[f"{option}={value}" for option, value, _ in WRONG])
def test_a_wrong_value_names_the_option(fit: Fit, option: str, value: Any, message: str) -> None:
    assert message in fit.refused(fit.changed(**{option: value}))


@pytest.mark.parametrize(("option", "path", "message"), CLASSES, ids=[path.split(".")[-1] for _, path, _ in CLASSES])
def test_a_misspelt_class_names_the_nearest(fit: Fit, option: str, path: str, message: str) -> None:
    assert message.format(path) in fit.refused(fit.changed(**{f"{option}.class_path": path}))


def test_options_of_the_command_line(fit: Fit) -> None:
    for words, message in (
        (["--data.batchsize", "3"], "data: option 'batchsize' is not known; did you mean 'batch_size'?"),
        (["--trainer.max_epoch=3"], "option 'trainer.max_epoch' is not known; did you mean 'trainer.max_epochs'?"),
        (["--model.decoder.init_args.stopp", "."], "model.decoder: option 'stopp' is not known; did you mean 'stop'?"),
        (["--data.batch_size", "x"], "data: option batch_size: expected int, got x"),
        (["--data.batch_size", "0"], "data.batch_size 0: give a number from 1 on"),
        (["--confg", "x"], "option 'confg' is not known; did you mean 'config'?"),
        (["stray"], "--config stray: no such file; shipped recipes: "),
        (["--model.decoder", "mmprefix.decodrs.Causal"], "did you mean 'mmprefix.decoders.CausalDecoder'?; decoders: "),
        (["--model.prefix=MPL"], "class_path MPL: no such class; did you mean 'mmprefix.mappers.mlp.MLP'?"),
        (["--ckpt_path", "none.ckpt"], "none.ckpt: no such checkpoint"),
    ):
        assert message in fit.refused(fit.config(), *words)


def test_files_that_are_no_recipe(fit: Fit) -> None:
    assert "recipe: not YAML (while parsing a flow node" in fit.refused("model: [")
    for text, kind in (("just words", "plain text"), ("- 1\n- 2\n", "a list"), ("", "nothing")):
        expected = f"recipe: not a recipe: expected options such as model, data and trainer, found {kind}"
        assert fit.refused(text) == expected


def test_debug_shows_the_traceback(fit: Fit) -> None:
    fit.file.write_text("modle: {}")
    with pytest.raises(InputError, match="option 'modle'"):
        main(["fit", "--config", str(fit.file), "--debug"])


def test_dry_run_with_and_without_a_value() -> None:
    for words, expected in {
        ("--dry-run",): ["--dry_run=true"],
        ("--dry_run", "--x", "1"): ["--dry_run=true", "--x", "1"],
        ("--dry-run", "true", "--x", "1"): ["--dry_run", "true", "--x", "1"],
        ("--dry_run", "false"): ["--dry_run", "false"],
        ("--dry-run=false",): ["--dry_run=false"],
        ("--dry-runs", "a"): ["--dry-runs", "a"],
    }.items():
        assert switches_as_options(list(words)) == expected


def test_dry_run_prints_sizes_and_trains_nothing(fit: Fit) -> None:
    code, out, _ = fit.run(fit.config(), "--dry_run", "true")
    rows = {" ".join(row.split()[:-3]): row.replace(",", "").split()[-3:] for row in out.splitlines() if row.strip()}
    assert code == 0
    assert rows["audio encoder"][0] == "Cnn"
    assert rows["audio encoder"][2] == rows["decoder"][2] == "0"
    assert rows["audio mapper"][1] == rows["audio mapper"][2] == rows["all"][2]
    total = sum(int(rows[name][1]) for name in ("audio encoder", "audio mapper", "decoder"))
    assert int(rows["all"][1]) == total
    assert not list(fit.root.rglob("*.ckpt"))


# --------------------------------------------------------------------------------------------- data and checkpoints


def _manifest(tiny: CaptioningSystem, root: Path, *bad: dict[str, Any] | str) -> Path:
    good = [json.loads(line) for line in (tiny.folder / "train.jsonl").read_text().splitlines()]
    rows: list[Any] = [{**row, "audio": str(tiny.folder / row["audio"])} for row in good if "audio" in row]
    rows[2:2] = bad
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / "m.jsonl").write_text("".join(line + "\n" for line in lines))
    return root / "m.jsonl"


def test_bad_rows_stop_a_training_or_are_left_out(fit: Fit, tiny: CaptioningSystem, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    sound = str(tiny.folder / "0.wav")
    manifest = _manifest(
        tiny,
        tmp_path,
        {"id": "gone", "audio": "none.wav", "captions": ["a"]},
        {"id": "text", "audio": "text.wav", "captions": ["a"]},
        {"id": "mute", "audio": sound, "captions": [" "]},
        "{not json",
    )
    config = fit.changed(**{"data.init_args.train": [str(manifest)]})
    code, _, err = fit.run(config)
    assert code == 2
    assert "Traceback" not in err
    lines = err[err.index("mmprefix: ") :].splitlines()
    assert lines[0] == "mmprefix: 4 bad rows (data.on_bad skip would leave them out)"
    assert [line.split(": ")[0] for line in lines[1:]] == [f"{manifest}:{number}" for number in (3, 4, 5, 6)]
    assert not list(tmp_path.rglob("*.ckpt"))
    code, _, err = fit.run(config, "--data.on_bad", "skip")
    assert code == 0, err
    assert "4 bad rows left out:" in err
    assert f"{manifest}:3: audio: " in err
    assert list(tmp_path.rglob("*.ckpt"))


def test_one_bad_row_is_one_message(fit: Fit, tiny: CaptioningSystem, tmp_path: Path) -> None:
    manifest = _manifest(tiny, tmp_path, {"id": "gone", "audio": "none.wav", "captions": ["a"]})
    code, _, err = fit.run(fit.changed(**{"data.init_args.train": [str(manifest)]}))
    assert code == 2
    assert f"{manifest}:3: audio: {tmp_path}/none.wav: no such file" in err


def test_a_manifest_that_is_empty_or_missing(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for words in (["check-data", str(empty)], ["check-data", str(tmp_path / "none.jsonl")]):
        capsys.readouterr()
        assert main(words) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert len(lines) == 1
        assert lines[0].startswith("mmprefix: ")
        assert words[1] in lines[0]
    code, _, err = fit.run(fit.changed(**{"data.init_args.train": [str(empty)]}))
    assert code == 2
    assert f"{empty}:1: the manifest is empty" in err
    missing = str(tmp_path / "none.jsonl")
    assert f"{missing}: the manifest cannot be read: no such file" in fit.refused(
        fit.changed(**{"data.init_args.train": [missing]})
    )


def test_a_checkpoint_for_another_decoder_or_of_another_program(
    fit: Fit, tiny: CaptioningSystem, tmp_path: Path
) -> None:
    code, _, err = fit.run(fit.config())
    assert code == 0, err
    checkpoint = next(tmp_path.rglob("last.ckpt")).rename(tmp_path.parent / f"{tmp_path.name}.kept")
    for file in tmp_path.rglob("*.ckpt"):
        file.unlink()
    other = fit.changed(**{"model.decoder.init_args.model": tiny.path("another")})
    message = fit.refused(other, "--ckpt_path", str(checkpoint))
    assert "was trained with the decoder" in message
    assert tiny.path("decoder") in message
    assert tiny.path("another") in message
    longer = fit.changed(**{f"{AUDIO}.mapper.init_args.length": 5})
    message = fit.refused(longer, "--ckpt_path", str(checkpoint))
    assert "mappers.audio" in message
    (tmp_path / "text.pt").write_text("no checkpoint")
    assert "text.pt" in fit.refused(fit.config(), "--ckpt_path", str(tmp_path / "text.pt"))


# ------------------------------------------------------------------------------------------------------- small pieces


def test_unknown_options_by_level() -> None:
    known = {"model.a.length", "model.a.width", "model.b", "data"}
    assert unknown_option("modle.a", known) == "option 'modle' is not known; did you mean 'model'?"
    assert (
        unknown_option("model.a.widht.x", known) == "option 'model.a.widht' is not known; did you mean 'model.a.width'?"
    )
    assert unknown_option("model.zzz", known) == "option 'model.zzz' is not known; options: a, b"
    assert did_you_mean("Resampel", ["Resampler", "_Resampel"]) == "; did you mean 'Resampler'?"


def test_recipes_on_a_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.yaml", "b.yaml", "c.yaml"):
        Path(name).write_text("")
    words = ["fit", "--config", "a.yaml", "-c", "b.yaml", "--config=c.yaml", "--config", "none.yaml", "--config"]
    assert recipes_of(words) == [Path("a.yaml"), Path("b.yaml"), Path("c.yaml")]


def test_other_messages_are_passed_on() -> None:
    class Bare:
        _actions: tuple[Any, ...] = ()

    assert explain('Parser key "model.x":\n  first\n  last line', Bare()) == "model.x: last line"
    assert explain("something\n  else", Bare()) == "something else"
    assert explain("", Bare()) == "wrong usage"
