"""Captions in the place of files: rows of training, what is not opened, and a training that then reads pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.aligned import Aligned, AlignedSpace, Projections
from mmprefix.encoders.text import Text
from mmprefix.encoders.timm import Timm
from mmprefix.errors import InputError
from mmprefix.features.captions_only import CaptionsOnly
from mmprefix.features.filling import EncodeRequest, plan
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.noisy_summary import NoisySummary
from mmprefix.mappers.support_memory import SupportMemory
from mmprefix.media.source import Texts
from mmprefix.model import Branch
from mmprefix.training.feature_cache import use_cache
from mmprefix.training.task import PrefixTask
from mmprefix.types import Features, Media
from tiny.captioning_system import quietly
from tiny.decoders import save_decoder
from tiny.encoders import save_timm
from tiny.pairs import trainer
from tiny.texts import save_sentence_encoder

pytestmark = quietly
CAPTIONS = ("a dog runs", "the dog sleeps", "a cat runs", "the cat sleeps", "a dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An aligned space, a decoder, and a manifest whose training pictures are no pictures, or are not there."""
    folder = tmp_path_factory.mktemp("text_only")
    encoders = {"image": Timm(str(save_timm(folder / "timm", "efficientnet"))),
                "text": Text(str(save_sentence_encoder(folder / "text")))}  # fmt: skip
    torch.manual_seed(0)
    AlignedSpace(encoders, Projections({n: part.pooled_dim for n, part in encoders.items()}, 6)).save(folder / "space")
    save_decoder(folder / "decoder")
    (folder / "broken.png").write_text("no picture")
    Image.new("RGB", (40, 40), "red").save(folder / "red.png")
    rows = [
        {"id": "two", "image": "broken.png", "captions": CAPTIONS[:2], "split": "train"},
        {"id": "none", "captions": CAPTIONS[2:4], "split": "train"},
        {"id": "one", "captions": [CAPTIONS[4]], "split": "train"},
        {"id": "picture", "image": "red.png", "captions": ["a dog", "the dog"], "split": "val"},
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def task_of(folder: Path, mapper: Callable[[Sizes], Mapper]) -> PrefixTask:
    branch = Branch(Aligned(str(folder / "space"), centred=True), mapper)
    return PrefixTask({"image": branch}, CausalDecoder(str(folder / "decoder")))


def test_each_training_caption_is_a_row_that_is_its_own_input(folder: Path) -> None:
    task = task_of(folder, partial(MLP, length=2, hidden=4))
    data = CaptionsOnly(root=str(folder), batch_size=2)
    data.inputs = task.inputs
    data.setup("fit")
    rows = data.rows["train"].examples
    assert [row.id for row in rows] == ["two-0", "two-1", "none-0", "none-1", "one"]
    assert [(row.captions, row.inputs["image"].source) for row in rows] == [((t,), Texts((t,))) for t in CAPTIONS]
    assert all(not row.inputs["image"].path for row in rows)
    assert [row.inputs["image"].path for row in data.rows["val"].examples] == [str(folder / "red.png")]
    seen = dict[str, str]()
    for batch in data.train_dataloader():
        media = batch.inputs["image"]
        assert isinstance(media, Media)
        assert not media.values.is_floating_point()
        seen |= {target[0]: name for target, name in zip(batch.targets, batch.ids, strict=True)}
    assert set(seen) == set(CAPTIONS)


def test_a_branch_that_is_not_there_is_refused(folder: Path) -> None:
    data = CaptionsOnly(branch="photo", root=str(folder))
    data.inputs = task_of(folder, partial(MLP, length=2, hidden=4)).inputs
    with pytest.raises(InputError, match=r"data\.branch 'photo': .* this model has image"):
        data.setup("fit")


def test_texts_and_files_are_encoded_in_batches_of_their_own() -> None:
    sources = [Texts((caption,)) if number % 2 else f"{number}.png" for number, caption in enumerate(CAPTIONS * 2)]
    requests = [EncodeRequest(bytes([number]), source, 0.0, None, 0.0) for number, source in enumerate(sources)]
    batches = plan(requests, 3)
    assert sorted(len(batch) for batch in batches) == [2, 2, 3, 3]
    assert all(len({isinstance(request.source, Texts) for request in batch}) == 1 for batch in batches)


@pytest.mark.parametrize("kind", ["noise", "memory"])
def test_captions_train_a_mapper_that_then_reads_pictures(folder: Path, tmp_path: Path, kind: str) -> None:
    inner = partial(MLP, length=2, hidden=4)
    mapper = partial(NoisySummary, mapper=inner) if kind == "noise" else partial(SupportMemory, mapper=inner, size=5)
    task = task_of(folder, mapper)
    before = {name: tensor.clone() for name, tensor in task.model.trained.items()}
    data = CaptionsOnly(root=str(folder), batch_size=2)
    run = trainer(tmp_path, max_epochs=2)
    stores = use_cache(
        task, data, ["fit"], root=str(tmp_path / "cache"), dtype="float32", callbacks=[], trainer=trainer(tmp_path)
    )
    assert len(stores["image"]) == len(CAPTIONS) + 1
    run.fit(task, data)
    (batch,) = list(data.val_dataloader())
    features = batch.inputs["image"]
    assert isinstance(features, Features)
    picture = task.model.encoder("image").preprocess(str(folder / "red.png"), 0.0, None)
    alone = task.model.encoder("image")(Media(picture[None], torch.ones(1, dtype=torch.long)))
    assert_close(features.pooled, alone.pooled)
    changed = [name for name, tensor in task.model.trained.items() if not torch.equal(tensor, before[name])]
    assert any("mapper.model" in name for name in changed)
    if kind == "memory":
        memory = task.model.trained["mappers.image.memory"]
        texts = [stores["image"][key].pooled for key in stores["image"]]
        assert all(min(float((row - text).norm()) for text in texts) < 1e-5 for row in memory)
