"""Aligned spaces on tiny encoders of the real classes: what a summary is, what a folder holds, what is refused."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from mmprefix.data.collate import pad_media
from mmprefix.encoders.aligned import CONFIG, Aligned, AlignedSpace, Projection, Projections
from mmprefix.encoders.base import Encoder
from mmprefix.encoders.text import Text
from mmprefix.encoders.timm import Timm
from mmprefix.errors import InputError
from mmprefix.media.source import Texts
from mmprefix.parts import from_recipe, to_recipe
from tiny.bert import save_bert
from tiny.encoders import save_timm
from tiny.texts import save_sentence_encoder

WIDTH = 6
PICTURES = [Image.new("RGB", (50, 40), colour) for colour in ("red", "green", "blue")]
TEXTS = [Texts(("a dog runs",)), Texts(("the cat sleeps .",)), Texts(("a cat",))]


def space_of(encoders: dict[str, Encoder]) -> AlignedSpace:
    """Untrained projections with moments and a centre of their own."""
    torch.manual_seed(2)
    model = Projections({name: part.pooled_dim for name, part in encoders.items()}, WIDTH, drop=0.5)
    for name, part in encoders.items():
        rows = torch.randn(20, part.pooled_dim) * 3 + 1
        model.of(name).observe(rows)
        model.eval().of(name).take_centre(rows)
    return AlignedSpace(encoders, model, {"val": {"r@1": 0.5}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("aligned")
    picture = Timm(str(save_timm(root / "timm", "efficientnet")))
    text = Text(str(save_sentence_encoder(root / "text")))
    space_of({"image": picture, "text": text}).save(root / "space")
    return root / "space"


def summary(encoder: Aligned, sources: list[Image.Image] | list[Texts]) -> Tensor:
    return encoder(pad_media([encoder.preprocess(source, 0.0, None) for source in sources])).pooled


def written_out(space: AlignedSpace, sense: str, rows: Tensor) -> Tensor:
    part = space.projections.of(sense)
    vectors = torch.stack([part.linear.weight @ ((row - part.mean) / part.deviation) for row in rows])
    return vectors / vectors.square().sum(1, keepdim=True).sqrt()


@torch.no_grad()
def test_pictures_and_texts_have_summaries_in_one_space(folder: Path) -> None:
    encoder, space = Aligned(str(folder)), AlignedSpace.load(folder)
    assert (encoder.dim, encoder.pooled_dim, encoder.input_kind) == (0, WIDTH, "image")
    for sense, sources in (("image", PICTURES), ("text", TEXTS)):
        alone = space.encoders[sense]
        rows = alone(pad_media([alone.preprocess(source, 0.0, None) for source in sources])).pooled
        own = summary(encoder, sources)
        assert_close(own, written_out(space, sense, rows))
        assert_close(own.norm(dim=1), torch.ones(3))
        assert_close(summary(encoder, sources[:1]), own[:1])
        around = written_out(space, sense, rows) - space.projections.of(sense).centre
        assert_close(summary(Aligned(str(folder), centred=True), sources), around / around.norm(dim=1, keepdim=True))


def test_a_projection_standardises_and_a_constant_number_is_not_blown_up() -> None:
    part, rows = Projection(3, 2).eval(), torch.randn(50, 3) * torch.tensor([2.0, 5.0, 0.0]) + 7
    part.observe(rows)
    assert_close(part.standardised(rows)[:, :2].std(0, correction=0), torch.ones(2))
    assert not part.standardised(rows)[:, 2].any()
    assert torch.equal(Projection(3, 2, drop=0.9).eval().standardised(rows), rows)


def test_the_scale_begins_as_clip_s_and_stops_at_100() -> None:
    model = Projections({"image": 3}, 2)
    assert_close(float(model.scale.detach()), 1 / 0.07)
    with torch.no_grad():
        model.log_scale.fill_(math.log(1e4))
    assert_close(float(model.scale.detach()), 100.0)


def test_a_recipe_and_a_copy_for_workers(folder: Path) -> None:
    encoder = Aligned(str(folder), "text", centred=True)
    again = from_recipe(to_recipe(encoder), Encoder)
    assert isinstance(again, Aligned)
    assert torch.equal(summary(again, TEXTS), summary(encoder, TEXTS))
    assert again.identity == encoder.identity
    assert again.input_kind == "text"
    read = pickle.loads(pickle.dumps(encoder.preprocess))
    assert torch.equal(read(TEXTS[0], 0.0, None), encoder.preprocess(TEXTS[0], 0.0, None))


def test_other_weights_behind_the_projections_are_refused(folder: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((folder / CONFIG).read_text())
    save_bert(tmp_path / "other", seed=9)
    config["senses"]["text"]["encoder"]["init_args"]["model"] = str(tmp_path / "other")
    (tmp_path / CONFIG).write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=r"the encoder of text was .* use the same weights"):
        AlignedSpace.load(tmp_path)


def test_what_is_no_space_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"aligned\.yaml: is not what .* writes"):
        AlignedSpace.load(tmp_path)
    with pytest.raises(InputError, match=r"sense 'audio': the space .* has image, text"):
        Aligned(str(folder), "audio")
    picture = AlignedSpace.load(folder).encoders["image"]
    space_of({"image": picture}).save(tmp_path / "one")
    with pytest.raises(InputError, match="no encoder of texts"):
        Aligned(str(tmp_path / "one")).preprocess(TEXTS[0], 0.0, None)
