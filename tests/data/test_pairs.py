"""PairData in a real Trainer: what comes in which batch, and that a killed run goes on as if nothing had happened."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from PIL import Image
from torch import Tensor

from mmprefix.data.collate import collate
from mmprefix.data.model_inputs import ModelInputs
from mmprefix.data.pairs import PairData
from mmprefix.data.sample import Sample
from mmprefix.data.samplers import BucketSampler, EvalSampler, RowKey
from mmprefix.encoders.signals import Signals
from mmprefix.errors import InputError
from mmprefix.types import Batch, Media
from tiny.readers import RATE, Hear, See

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
]


class Learner(LightningModule):
    """Fits one number to the sums of what it reads; remembers the ids of every step."""

    def __init__(self, branches: tuple[str, ...] = ("audio",), stop_after: int | None = None) -> None:
        super().__init__()
        self.inputs = ModelInputs({name: Hear() if name == "audio" else See() for name in branches})
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_after = stop_after
        self.steps: list[list[str]] = []
        self.evaluated: list[list[str]] = []

    def training_step(self, batch: Batch, number: int) -> Tensor:
        if self.stop_after is not None and len(self.steps) == self.stop_after:
            raise KeyboardInterrupt
        self.steps.append(batch.ids)
        (media,) = batch.inputs.values()
        assert isinstance(media, Media)
        return (self.weight - media.values.sum()) ** 2

    def validation_step(self, batch: Batch, number: int) -> None:
        self.evaluated.append(batch.ids)

    test_step = validation_step

    def predict_step(self, batch: Batch, number: int) -> list[str]:
        return batch.ids

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([self.weight], lr=0.1)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    options = {"max_epochs": 3, "num_sanity_val_steps": 0, "use_distributed_sampler": False, **options}
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        **options,
    )


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """19 training and 5 validation sounds of 20 to 210 ms, the last 3 of each split without a file of their own."""
    folder = tmp_path_factory.mktemp("sounds")
    random = np.random.default_rng(0)
    lines = []
    for number in range(24):
        soundfile.write(folder / f"{number}.wav", random.uniform(-0.1, 0.1, 160 + 70 * number), RATE)
        captions = [f"sound {number} said in {way} words" for way in ("few", "more", "many other")]
        row = {
            "id": f"s{number}",
            "audio": f"{number}.wav",
            "captions": captions,
            "split": "train" if number < 19 else "val",
        }
        lines.append(json.dumps(row))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


def data(folder: Path, **options: Any) -> PairData:
    return PairData(root=str(folder), **{"batch_size": 4, "seed": 3, **options})


def alone(folder: Path, branches: tuple[str, ...] = ("audio",), stage: str = "fit", **options: Any) -> PairData:
    """PairData without a Trainer."""
    pairs = data(folder, **options)
    pairs.inputs = Learner(branches).inputs
    pairs.setup(stage)
    return pairs


class Noting(Learner):
    """A Learner that notes its ids in a file for each process; the buffer makes DDP talk in evaluation too."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.register_buffer("scale", torch.ones(()))

    def note(self, kind: str, batch: Batch) -> None:
        with (self.folder / f"{kind}{self.global_rank}.jsonl").open("a") as stream:
            stream.write(json.dumps(batch.ids) + "\n")

    def training_step(self, batch: Batch, number: int) -> Tensor:
        self.note("train", batch)
        return super().training_step(batch, number)

    def validation_step(self, batch: Batch, number: int) -> None:
        self.note("val", batch)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_share_the_rows(tmp_path: Path, sounds: Path) -> None:
    run = trainer(tmp_path, strategy="ddp_fork", devices=2, max_epochs=2)
    run.fit(Noting(tmp_path), datamodule=data(sounds, batch_size=3, eval_batch_size=2))

    def steps(kind: str, rank: int) -> list[list[str]]:
        return [json.loads(line) for line in (tmp_path / f"{kind}{rank}.jsonl").read_text().splitlines()]

    for kind, names in (("train", range(19)), ("val", range(19, 24))):
        both = [steps(kind, rank) for rank in (0, 1)]
        assert len(both[0]) == len(both[1])
        half = len(both[0]) // 2
        for epoch in (slice(0, half), slice(half, None)):
            seen = [name for share in both for ids in share[epoch] for name in ids]
            assert len(seen) == len(set(seen))
            left_out = {f"s{number}" for number in names} - set(seen)
            assert len(left_out) == (1 if kind == "train" else 0)  # 19 rows in steps of 6: the last would have one row


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lightning_must_not_deal_out_the_rows_again(tmp_path: Path, sounds: Path) -> None:
    run = trainer(tmp_path, strategy="ddp_fork", devices=2, use_distributed_sampler=True)
    with pytest.raises(Exception, match=r"trainer\.use_distributed_sampler true in several processes: give false"):
        run.fit(Learner(), datamodule=data(sounds))


# ---------------------------------------------------------------------------------------------------------- resuming


def uninterrupted(folder: Path, sounds: Path, **options: Any) -> Learner:
    module = Learner()
    trainer(folder, **options).fit(module, datamodule=data(sounds))
    return module


def resumed(
    folder: Path, sounds: Path, save: ModelCheckpoint, stop: int, workers: int, **options: Any
) -> tuple[Any, Any]:
    """The learner that is stopped within step ``stop`` + 1, and the one that goes on from its last checkpoint."""
    first, second = Learner(stop_after=stop), Learner()
    with pytest.raises(SystemExit):  # how Lightning ends a run that was interrupted
        trainer(folder, save, **options).fit(first, datamodule=data(sounds, num_workers=workers))
    trainer(folder, **options).fit(second, datamodule=data(sounds, num_workers=workers), ckpt_path=folder / "last.ckpt")
    return first, second


@pytest.mark.filterwarnings("ignore:.*KeyboardInterrupt")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("every", "stop"), [(2, 3), (7, 8), (5, 6), (10, 10)], ids=["0.4", "1.4", "0 end", "1 end"])
def test_a_run_killed_in_mid_epoch_goes_on_as_if_uninterrupted(
    tmp_path: Path, sounds: Path, every: int, stop: int, workers: int
) -> None:
    whole = uninterrupted(tmp_path, sounds)
    assert len(whole.steps) == 15
    save = ModelCheckpoint(tmp_path, every_n_train_steps=every, save_last=True, save_top_k=0)
    first, second = resumed(tmp_path, sounds, save, stop, workers)
    assert first.steps[:every] + second.steps == whole.steps
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.filterwarnings("ignore:.*KeyboardInterrupt")
@pytest.mark.parametrize("by_steps", [False, True])
@pytest.mark.parametrize("on_train_epoch_end", [False, True])
def test_checkpoints_at_the_end_of_an_epoch(
    tmp_path: Path, sounds: Path, by_steps: bool, on_train_epoch_end: bool
) -> None:
    limit: dict[str, Any] = {"max_epochs": -1, "max_steps": 15} if by_steps else {}
    whole = uninterrupted(tmp_path, sounds, **limit)
    save = ModelCheckpoint(tmp_path, save_last=True, save_top_k=-1, save_on_train_epoch_end=on_train_epoch_end)
    first, second = resumed(tmp_path, sounds, save, 7, 0, **limit)
    assert first.steps[:5] + second.steps == whole.steps
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.filterwarnings("ignore:.*KeyboardInterrupt")
@pytest.mark.parametrize("options", [{"limit_train_batches": 3, "max_epochs": 4}, {"val_check_interval": 2}])
def test_resuming_with_part_epochs_and_validation_within_them(
    tmp_path: Path, sounds: Path, options: dict[str, Any]
) -> None:
    whole = uninterrupted(tmp_path, sounds, **options)
    save = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_last=True, save_top_k=0)
    first, second = resumed(tmp_path, sounds, save, 6, 0, **options)
    assert first.steps[:4] + second.steps == whole.steps


def test_resuming_is_refused_within_an_epoch_of_other_batches(tmp_path: Path, sounds: Path) -> None:
    for steps, name in ((7, "middle.ckpt"), (10, "end.ckpt")):
        run = trainer(tmp_path, max_steps=steps)
        run.fit(Learner(), datamodule=data(sounds))
        run.save_checkpoint(tmp_path / name)
    with pytest.raises(InputError, match=r"after 2 batches.*data\.batch_size was 4, is 3"):
        trainer(tmp_path).fit(Learner(), datamodule=data(sounds, batch_size=3), ckpt_path=tmp_path / "middle.ckpt")
    module = Learner()
    trainer(tmp_path).fit(module, datamodule=data(sounds, batch_size=3), ckpt_path=tmp_path / "end.ckpt")
    fresh = alone(sounds, batch_size=3)
    fresh.train_dataloader()
    sampler = BucketSampler(fresh.rows["train"].keys, 3, seed=3)
    names = [example.id for example in fresh.rows["train"].examples]
    assert module.steps == [[names[row] for row in draw.rows] for draw in sampler.batches(2)]


def test_training_draws_nothing_from_the_global_generators(sounds: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 1):
        assert len(list(alone(sounds, num_workers=workers).train_dataloader())) == 5
    assert torch.equal(torch.get_rng_state(), before)


# --------------------------------------------------------------------------------------------------------- the order


def rows(count: int, seed: int = 0) -> list[RowKey]:
    lengths = np.random.default_rng(seed).integers(1, 100, count)
    kinds = [frozenset({"audio"}), frozenset({"image"}), frozenset({"audio", "image"})]
    return [RowKey(kinds[number % 7 % 3], float(length), 1, 9) for number, length in enumerate(lengths)]


@pytest.mark.parametrize("bucket", [True, False])
@pytest.mark.parametrize(("count", "size", "world"), [(100, 4, 1), (101, 4, 2), (1003, 3, 3), (2, 5, 1)])
def test_every_row_once_an_epoch_by_one_process(count: int, size: int, world: int, bucket: bool) -> None:
    given = rows(count)
    samplers = [BucketSampler(given, size, seed=1, bucket=bucket, rank=rank, world=world) for rank in range(world)]
    for epoch in (0, 1):
        batches = [sampler.batches(epoch) for sampler in samplers]
        assert {len(mine) for mine in batches} == {len(samplers[0])}
        seen = [row for mine in batches for draw in mine for row in draw.rows]
        assert len(seen) == len(set(seen))
        left_out = count - len(seen)
        assert left_out < 3 * world if world > 1 else left_out == 0  # a step smaller than the world, one a kind
        for step in zip(*batches, strict=True):
            assert len({given[row].inputs for draw in step for row in draw.rows}) == 1
            assert max(len(draw.rows) for draw in step) <= size
    assert samplers[0].batches(0) == BucketSampler(given, size, seed=1, bucket=bucket, world=world).batches(0)
    if count > 10:
        assert samplers[0].batches(0) != samplers[0].batches(1)


def test_bucketing_saves_padding_and_keeps_chance() -> None:
    given = [RowKey(frozenset({"audio"}), *row.length) for row in rows(4000)]

    def padded(bucket: bool) -> int:
        draws = BucketSampler(given, 16, bucket=bucket).batches(0)
        return sum(len(draw.rows) * int(max(given[row].seconds for row in draw.rows)) for draw in draws)

    real = sum(int(row.seconds) for row in given)
    assert padded(True) < 1.05 * real < 1.6 * real < padded(False)
    means = [np.mean([given[row].seconds for row in draw.rows]) for draw in BucketSampler(given, 16).batches(0)]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # short batches do not come in a row


def test_skip_and_length() -> None:
    sampler = BucketSampler(rows(40), 4)
    everything = list(sampler)
    sampler.set_epoch(0, skip=3)
    assert list(sampler) == everything[3:]
    assert len(sampler) == len(everything)
    full = BucketSampler(rows(41), 4, drop_last=True)
    assert {len(draw.rows) for draw in full} == {4}
    assert len(list(full)) == len(full)


@pytest.mark.parametrize(("count", "size", "world"), [(100, 4, 1), (101, 4, 2), (50, 16, 4), (3, 8, 2), (2, 8, 4)])
def test_evaluation_sees_every_row_exactly_once(count: int, size: int, world: int) -> None:
    for bucket in (True, False):
        shares = [list(EvalSampler(rows(count), size, bucket=bucket, rank=rank, world=world)) for rank in range(world)]
        seen = sorted(row for share in shares for draw in share for row in draw.rows)
        assert all(shares)  # else the others would wait for a process that has nothing
        assert seen == list(range(count)) if count >= world else set(seen) == set(range(count))
        assert max(len(draw.rows) for share in shares for draw in share) <= size
        if count > 3 * world:  # fewer rows than that, of three kinds, cannot be dealt out evenly
            assert len({len(share) for share in shares}) == 1


# ----------------------------------------------------------------------------------------------------------- batches


def test_collate_pads_sounds_and_stacks_pictures() -> None:
    samples = [
        Sample({"audio": torch.ones(5), "image": torch.zeros(3, 2, 2)}, "p", ["a", "b"], "", "x", "x.wav"),
        Sample({"audio": torch.ones(3), "image": torch.ones(3, 2, 2)}, "", [], "c", "y", "y.wav"),
    ]
    batch = collate(samples)
    audio, image = batch.inputs["audio"], batch.inputs["image"]
    assert isinstance(audio, Media)
    assert isinstance(image, Media)
    assert audio.values.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert audio.lengths.tolist() == [5, 3]
    assert image.values.shape == (2, 3, 2, 2)
    assert image.lengths.tolist() == [1, 1]
    assert (batch.prompts, batch.targets, batch.contexts) == (["p", ""], [["a", "b"], []], ["", "c"])
    assert (batch.ids, batch.sources) == (["x", "y"], ["x.wav", "y.wav"])


def test_pictures_and_sounds_in_one_manifest(tmp_path: Path, sounds: Path) -> None:
    lines = []
    for number in range(12):
        row: dict[str, Any] = {"target": "t", "split": "train", "audio": str(sounds / f"{number}.wav")}
        if number % 3 == 0:
            row["image"] = "red.png"
        if number % 3 == 1:
            row = {"target": "t", "split": "train", "image": "red.png", "prompt": "look:"}
        lines.append(json.dumps(row))
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    batches = list(alone(tmp_path, ("image", "audio"), prompt="say:", batch_size=3).train_dataloader())
    assert sorted(tuple(sorted(batch.inputs)) for batch in batches) == [
        ("audio",), ("audio",), ("audio", "image"), ("audio", "image"), ("image",), ("image",),
    ]  # fmt: skip
    assert {prompt for batch in batches for prompt in batch.prompts if "audio" in batch.inputs} == {"say:"}
    assert {prompt for batch in batches for prompt in batch.prompts if "audio" not in batch.inputs} == {"look:"}
    only = alone(tmp_path, ("image",))
    assert len(only.rows["train"].examples) == 8  # rows that are sound alone have nothing for this model


def test_captions_are_drawn_anew_each_epoch_and_alike_in_workers(sounds: Path) -> None:
    def drawn(workers: int) -> list[dict[str, list[str]]]:
        loader = alone(sounds, max_captions=1, num_workers=workers).train_dataloader()
        epochs = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            batches = list(loader)
            epochs.append(
                {name: text for batch in batches for name, text in zip(batch.ids, batch.targets, strict=True)}
            )
        return epochs

    alike, first = drawn(2), drawn(0)
    assert alike == first
    assert first[0] != first[1]
    assert all(len(texts) == 1 for epoch in first for texts in epoch.values())


def test_validation_test_and_prediction(tmp_path: Path, sounds: Path) -> None:
    module, run = Learner(), trainer(tmp_path)
    run.validate(module, datamodule=data(sounds), verbose=False)
    assert sorted(name for ids in module.evaluated for name in ids) == ["s19", "s20", "s21", "s22", "s23"]
    predicted = run.predict(module, datamodule=PairData(predict=str(sounds / "manifest.jsonl"), batch_size=7))
    assert predicted is not None
    assert [name for ids in predicted for name in ids] == [f"s{number}" for number in range(24)]  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"no row to test on: give data\.test FILE"):
        run.test(Learner(), datamodule=data(sounds), verbose=False)


def test_training_without_validation_rows(tmp_path: Path, sounds: Path) -> None:
    module = Learner()
    pairs = PairData(train=str(sounds / "manifest.jsonl"), where={"split": "train"}, batch_size=4)
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=pairs)
    assert len(module.steps) == 5


def test_preprocess_and_dataset_can_be_sent_to_spawned_workers(sounds: Path) -> None:
    pairs = alone(sounds)
    copy = pickle.loads(pickle.dumps(pairs.train_dataloader().dataset))
    draw = BucketSampler(pairs.rows["train"].keys, 4).batches(0)[0]
    assert copy[draw].ids == [pairs.rows["train"].examples[row].id for row in draw.rows]


# ------------------------------------------------------------------------------------------- texts, and other fields


def texts(folder: Path, *rows: dict[str, Any], stage: str = "fit", reads: bool = True, **options: Any) -> PairData:
    """PairData for a model that hears, and reads a context if it ``reads``, on the ``rows``."""
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = {"fit": "train", "validate": "val"}.get(stage, stage)
    pairs = PairData(**{split: str(file), "batch_size": 4, "seed": 3, **options})
    pairs.inputs = ModelInputs({"audio": Hear()}, reads_text=reads)
    pairs.setup(stage)
    return pairs


def drawn(pairs: PairData, epoch: int) -> dict[str, Batch]:
    """The batches of an epoch of training, by the id of each row."""
    loader = pairs.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return {name: batch for batch in loader for name in batch.ids}


def test_rows_of_text_alone_feed_a_model_that_reads_them(tmp_path: Path, sounds: Path) -> None:
    rows = [
        {"id": "both", "audio": str(sounds / "1.wav"), "context": "a dog", "target": "t"},
        {"id": "text", "context": "a cat", "target": "t"},
        {"id": "sound", "audio": str(sounds / "2.wav"), "target": "t"},
        {"id": "other", "transcript": "rain", "target": "t"},
    ]
    found = drawn(texts(tmp_path, *rows), 0)
    assert set(found) == {"both", "text", "sound"}  # a transcript is no context, unless data.context says so
    assert [list(found[name].inputs) for name in ("both", "text", "sound")] == [["audio"], [], ["audio"]]
    assert found["text"] is not found["both"] is found["sound"]
    told = {n: c for batch in found.values() for n, c in zip(batch.ids, batch.contexts, strict=True)}
    assert told == {"both": "a dog", "text": "a cat", "sound": ""}
    assert found["text"].sources == [f"{tmp_path / 'texts.jsonl'}:2"]
    assert found["both"].questions == []
    assert set(drawn(texts(tmp_path, *rows, context=["transcript", "context"]), 0)) == {
        "both",
        "text",
        "sound",
        "other",
    }
    assert set(drawn(texts(tmp_path, *rows, reads=False), 0)) == {"both", "sound"}


def test_rows_of_text_alone_are_refused_where_nothing_reads_them(tmp_path: Path) -> None:
    row = {"id": "text", "context": "a cat", "target": "t"}
    with pytest.raises(InputError, match=r"its rows of text alone feed none of the model's branches \(audio\)$"):
        texts(tmp_path, row, reads=False)
    with pytest.raises(
        InputError, match=r"none of the model's branches \(audio\), and no row has a text in asr or said"
    ):
        texts(tmp_path, row, context=["asr", "said"])


def test_the_first_field_that_has_a_text_is_the_context(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "asr": "one", "transcript": "two", "target": "t"},
        {"id": "b", "asr": "  ", "transcript": " two ", "target": "t"},
        {"id": "c", "asr": [], "transcript": "three", "target": "t"},
        {"id": "d", "asr": ["", "four", 5], "transcript": "x", "target": "t"},
    ]
    found = drawn(texts(tmp_path, *rows, context=["asr", "transcript"]), 0)
    told = {n: c for batch in found.values() for n, c in zip(batch.ids, batch.contexts, strict=True)}
    assert told == {"a": "one", "b": "two", "c": "three", "d": "four"}


@pytest.mark.parametrize("field", ["asr", "context"])
def test_of_several_texts_training_draws_one_each_epoch(tmp_path: Path, field: str) -> None:
    row = {"transcript": "r", field: ["one", "two", "three"], "target": "t"}
    rows = [row | {"id": str(n)} for n in range(8)]
    pairs = texts(tmp_path, *rows, context=field)

    def told(data: PairData, epoch: int) -> dict[str, str]:
        found = drawn(data, epoch)
        return {n: c for batch in found.values() for n, c in zip(batch.ids, batch.contexts, strict=True)}

    epochs = [told(pairs, epoch) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert {text for one in epochs for text in one.values()} == {"one", "two", "three"}
    assert told(texts(tmp_path, *rows, context=field), 1) == epochs[1]
    assert told(texts(tmp_path, *rows, context=field, seed=4), 1) != epochs[1]
    first = texts(tmp_path, *rows, context=field, stage="validate")
    assert {c for batch in first.val_dataloader() for c in batch.contexts} == {"one"}


def test_what_is_written_may_stand_in_another_field(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "context": "x", "wake": True, "captions": ["no"]},
        {"id": "b", "context": "x", "wake": False},
        {"id": "c", "context": "x", "wake": 3},
        {"id": "d", "context": "x", "wake": 0},
        {"id": "e", "context": "x", "wake": " a word "},
    ]
    found = drawn(texts(tmp_path, *rows, target="wake"), 0)
    written = {n: t for batch in found.values() for n, t in zip(batch.ids, batch.targets, strict=True)}
    assert written == {"a": ["true"], "b": ["false"], "c": ["3"], "d": ["0"], "e": ["a word"]}
    labels = drawn(texts(tmp_path, *({**row, "label": row["wake"]} for row in rows), target="label"), 0)
    assert [t for batch in labels.values() for t in batch.targets] == [t for b in found.values() for t in b.targets]


def test_a_row_without_what_is_to_be_written_is_a_fault(tmp_path: Path) -> None:
    wrong = [{}, {"wake": None}, {"wake": " "}, {"wake": ["a"]}, {"wake": {"a": 1}}]
    rows = [{"id": str(n), "context": "x", **row} for n, row in enumerate([{"wake": True}, *wrong])]
    with pytest.raises(InputError) as error:
        texts(tmp_path, *rows, target="wake")
    first, *lines = str(error.value).splitlines()
    assert first == "5 bad rows (data.on_bad skip would leave them out)"
    message = "wake: holds no text, number or truth value to be written"
    assert lines == [f"{tmp_path / 'texts.jsonl'}:{n}: {message}" for n in range(2, 7)]
    assert len(texts(tmp_path, *rows, target="wake", on_bad="skip").rows["train"].examples) == 1
    (batch,) = texts(tmp_path, *rows, target="wake", stage="predict", batch_size=9).predict_dataloader()
    assert batch.targets == [["true"], [], [], [], [], []]


def test_numbers_stand_in_a_row_or_in_a_file(tmp_path: Path, sounds: Path) -> None:
    (tmp_path / "n.json").write_text("[3, 4]")
    np.save(tmp_path / "n.npy", np.array([5.0, 6.0]))
    (tmp_path / "three.json").write_text("[1, 2, 3]")
    (tmp_path / "words.json").write_text('["a", "b"]')
    good = [[1, 2], "n.json", "n.npy"]
    rows = [{"id": str(n), "signals": value, "target": "t"} for n, value in enumerate(good)]
    encoder = Signals(["first", "second"])

    def read(*more: dict[str, Any], **options: Any) -> PairData:
        (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *more]))
        pairs = PairData(train=str(tmp_path / "m.jsonl"), batch_size=9, **options)
        pairs.inputs = ModelInputs({"signals": encoder.preprocess})
        pairs.setup("fit")
        return pairs

    (batch,) = read().train_dataloader()
    media = batch.inputs["signals"]
    assert isinstance(media, Media)
    assert dict(zip(batch.ids, media.values.tolist(), strict=True)) == {"0": [1, 2], "1": [3, 4], "2": [5, 6]}
    places = {"0": f"{tmp_path / 'm.jsonl'}:1", "1": str(tmp_path / "n.json"), "2": str(tmp_path / "n.npy")}
    assert dict(zip(batch.ids, batch.sources, strict=True)) == places
    with pytest.raises(InputError, match=r"m\.jsonl:4: .*words\.json: holds no list of numbers"):
        read({"signals": "words.json", "target": "t"})
    for value, message in (([1, 2, 3], "the given numbers"), ("three.json", r".*three\.json")):
        pairs = read({"id": "bad", "signals": value, "target": "t"})
        with pytest.raises(InputError, match=rf"m\.jsonl:4: {message}: holds 3 numbers, expected 2: first, second"):
            list(pairs.train_dataloader())
    pairs = read({"id": "bad", "signals": [1, 2, 3], "target": "t"}, on_bad="skip")
    assert [len(batch) for batch in pairs.train_dataloader()] == [3]


# ------------------------------------------------------------------------------------------------------------ faults


@pytest.fixture
def faulty(tmp_path: Path, sounds: Path) -> Path:
    """Ten rows; 3 is text, 5 has no caption, 7 has no file, 9 has a header but broken sound (seen only in decoding)."""
    (tmp_path / "text.wav").write_text("no sound" * 50)
    soundfile.write(tmp_path / "late.flac", np.random.default_rng(0).uniform(-0.1, 0.1, 9000), RATE)
    flac = (tmp_path / "late.flac").read_bytes()
    (tmp_path / "late.flac").write_bytes(flac[: len(flac) // 2])
    files = {3: "text.wav", 7: "none.wav", 9: "late.flac"}
    lines = []
    for line in range(1, 11):
        row = {"id": f"r{line}", "audio": files.get(line, str(sounds / f"{line}.wav")), "split": "train"}
        lines.append(json.dumps(row if line == 5 else {**row, "captions": ["c"]}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_bad_rows_stop_before_the_first_step(faulty: Path) -> None:
    module = Learner()
    with pytest.raises(InputError) as caught:
        trainer(faulty).fit(module, datamodule=data(faulty))
    assert module.steps == []
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("3 bad rows")
    manifest = faulty / "manifest.jsonl"
    assert [line.removeprefix(str(manifest))[:18] for line in lines] == [
        ":3: " + str(faulty)[:14],
        ":5: no caption",
        ":7: audio: " + str(faulty)[:7],
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_skipped_and_counted(faulty: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    module = Learner()
    with caplog.at_level("WARNING", logger="mmprefix"):
        trainer(faulty, max_epochs=2).fit(module, datamodule=data(faulty, on_bad="skip", num_workers=workers))
    for epoch in (module.steps[:2], module.steps[2:]):
        assert sorted(name for ids in epoch for name in ids) == ["r1", "r10", "r2", "r4", "r6", "r8"]
    assert "3 bad rows left out" in caplog.text
    assert "rows left out because their files could not be decoded: 1" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_what_only_decoding_shows_stops_with_file_and_line(faulty: Path, workers: int) -> None:
    lines = (faulty / "manifest.jsonl").read_text().splitlines()
    (faulty / "manifest.jsonl").write_text("\n".join(line for line in lines if '"r9"' in line or '"r1"' in line))
    with pytest.raises(InputError, match=r"manifest\.jsonl:2: .*late\.flac") as caught:
        trainer(faulty).fit(Learner(), datamodule=data(faulty, num_workers=workers))
    assert "\n" not in str(caught.value)


def test_options_that_cannot_be_are_refused_by_name(tmp_path: Path, sounds: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "data.batch_size 0"),
        ({"eval_batch_size": -1}, "data.eval_batch_size -1"),
        ({"max_captions": 0}, "data.max_captions 0"),
        ({"num_workers": -2}, "data.num_workers -2"),
        ({"on_bad": "warn"}, "data.on_bad 'warn'"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            data(sounds, **options)
    with pytest.raises(InputError, match=r"no data: give data\.root"):
        PairData()
    with pytest.raises(InputError, match=r"manifest\.jsonl.*no such file"):
        alone(tmp_path)
    with pytest.raises(InputError, match=r"columns \(audio\) feed none of the model's branches \(image\)"):
        alone(sounds, ("image",))
    with pytest.raises(InputError, match=r"no row has split = train and label = dog"):
        alone(sounds, where={"label": "dog"})
    with pytest.raises(InputError, match="make no batch"):
        alone(sounds, drop_last=True, batch_size=20).train_dataloader()
    with pytest.raises(InputError, match=r"set data\.inputs"):
        data(sounds).setup("fit")
    with pytest.raises(InputError, match=r"overfit_batches.*limit_train_batches"):
        trainer(tmp_path, overfit_batches=2).fit(Learner(), datamodule=data(sounds))
