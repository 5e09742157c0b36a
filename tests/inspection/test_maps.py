"""Maps of where a prefix looks: an encoder that sees one place, shapes of the embedded world, a model's state."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, resize

from mmprefix import InputError, Predictor, Waveform, inspection, world
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.audio_input import ReadWaveform
from mmprefix.encoders.base import Encoder
from mmprefix.encoders.image_input import ReadPicture
from mmprefix.inspection import Maps, attention_maps, caption_map, interpolate, nearest_words, next_words, norms
from mmprefix.mappers.mlp import MLP
from mmprefix.model import Branch, PrefixLM
from mmprefix.types import Features, Media
from mmprefix.weights.source import Provenance
from mmprefix.world.audio import RATE
from mmprefix.world.images import circles
from tiny.models import random_picture, tone


def to_pixels(picture: Image.Image) -> Tensor:
    return resize(pil_to_tensor(picture), [64, 64]).float() / 255


class OneCell(Encoder):
    """Summary: the mean colour of the cell in row 2 and column 5 of 8 x 8."""

    input_kind = "image"

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.pooled_dim = 0, 3
        self.preprocess, self.identity = ReadPicture(to_pixels), Provenance("one cell", None, "one-cell")
        self.freeze()

    def encode(self, media: Media) -> Features:
        pooled = media.values[:, :, 16:24, 40:48].mean((2, 3))
        return Features(pooled.new_zeros(len(pooled), 0, 0), pooled.new_zeros(len(pooled), 0).bool(), pooled)


class OneSlice(Encoder):
    """Summary: loudness between 0.5 and 0.75 seconds."""

    input_kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.pooled_dim = 0, 1
        self.preprocess, self.identity = ReadWaveform(8000), Provenance("one slice", None, "one-slice")
        self.freeze()

    def encode(self, media: Media) -> Features:
        pooled = media.values[:, 4100:5900].square().mean(1, keepdim=True)
        return Features(pooled.new_zeros(len(pooled), 0, 0), pooled.new_zeros(len(pooled), 0).bool(), pooled)


def model_of(encoder: Encoder) -> Predictor:
    torch.manual_seed(0)
    branch = Branch(encoder, partial(MLP, length=3, hidden=8))
    return Predictor(PrefixLM({encoder.input_kind: branch}, CausalDecoder("mmprefix:world/frozen/decoder")))


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (2400, 1600)])
def test_an_encoder_that_sees_one_cell_is_hot_there_alone(size: tuple[int, int]) -> None:
    maps = attention_maps(model_of(OneCell()), random_picture(3).resize(size))
    assert maps.values.shape == (3, 8, 8)
    assert maps.values[:, 2, 5].tolist() == [1.0] * 3
    others = maps.values.copy()
    others[:, 2, 5] = 0
    assert others.max() < 0.05  # of a picture that is made smaller, pixels of the next cell
    assert (maps.x[-1], maps.y[-1]) == size
    assert maps.centre() == pytest.approx((size[0] * 5.5 / 8, size[1] * 2.5 / 8), rel=0.05)
    assert np.unravel_index(maps.overall.argmax(), (8, 8)) == (2, 5)


def test_an_encoder_that_hears_one_slice_is_hot_then_alone() -> None:
    maps = attention_maps(model_of(OneSlice()), Waveform(tone(1.6, 440.0), RATE))
    assert maps.x.tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.6])
    assert (maps.values == np.eye(7)[2]).all()
    assert maps.centre() == pytest.approx((0.625,))
    assert (maps.kind, maps.branch, maps.method, maps.labels) == ("audio", "audio", "occlusion", ("0", "1", "2"))


def test_what_changes_nothing_is_cold_everywhere() -> None:
    flat = attention_maps(model_of(OneCell()), Image.new("RGB", (64, 64), (90, 60, 30)), grid=4)
    assert not flat.values.any()
    assert not flat.strength.any()
    assert not flat.overall.any()


@pytest.mark.slow
def test_the_heat_lies_on_the_shape_of_most_embedded_pictures(world_model: Predictor) -> None:
    scenes = (s for s in world.sample("image", 23, new=True) if isinstance(s, world.Picture) and len(s.things) == 1)
    on_shape = []
    for scene in islice(scenes, 20):
        maps = attention_maps(world_model, world.draw(scene), grid=6)
        row, column = np.unravel_index(maps.overall.argmax(), maps.overall.shape)
        ((x, y, radius),) = circles(scene)
        nearest = np.clip([x, y], [maps.x[column], maps.y[row]], [maps.x[column + 1], maps.y[row + 1]])
        on_shape.append(float(np.hypot(*(nearest - [x, y]))) < radius)
    print(sum(on_shape), "of 20 on the shape")  # noqa: T201
    assert sum(on_shape) >= 18


def test_words_of_two_sounds_are_heard_one_after_the_other(world_model: Predictor) -> None:
    scenes = (s for s in world.sample("audio", 29, new=False) if isinstance(s, world.Sound) and len(s.events) == 2)
    both = 0
    for scene in islice(scenes, 6):
        text = next(text for text in world.captions(scene) if ", then" in text)
        maps = caption_map(world_model, Waveform(world.render(scene), RATE), text=text)
        assert maps.labels == tuple(text.split())
        middle = maps.labels.index("then")
        needy = [n for n, strength in enumerate(maps.strength) if strength > 0.1]  # words that need a slice
        earlier, later = ([maps.centre(n)[0] for n in needy if (n < middle) == first] for first in (True, False))
        if earlier and later:
            both += 1
            assert max(earlier) < min(later)
    assert both >= 3


def test_the_losses_of_words_sum_to_that_of_the_caption(world_model: Predictor) -> None:
    scene = next(world.sample("image", 3, new=False))
    assert isinstance(scene, world.Picture)
    picture, text = world.draw(scene), world.captions(scene)[0]
    maps = caption_map(world_model, picture, text=text, grid=1)
    grey = np.asarray(picture).reshape(-1, 3).mean(0).round().astype(np.uint8)
    scores = world_model.score([picture, Image.new("RGB", picture.size, tuple(grey.tolist()))], [text, text])
    assert float(maps.strength.sum()) == pytest.approx(
        scores[0] - scores[1], abs=0.5
    )  # end of text, and words that gain


def state_of(model: Predictor) -> dict[str, Any]:
    modules = list(model.model.modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules]
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.model.state_dict().items()},
        "rest": ([m.training for m in modules], hooks, [p.grad is None for p in model.model.parameters()]),
    }


def views(model: Predictor, value: Any) -> list[Any]:
    maps = (
        attention_maps(model, value, seconds=0.5)
        if isinstance(value, Waveform)
        else attention_maps(model, value, grid=3)
    )
    return [nearest_words(model, value), next_words(model, value), norms(model, value), maps.to_dict()]


def test_a_model_is_the_same_afterwards_and_threads_see_the_same(tiny_model: Predictor) -> None:
    values = [random_picture(0), Waveform(tone(0.9, 250.0), RATE), random_picture(1)]
    before = state_of(tiny_model)
    alone = [views(tiny_model, value) for value in values]
    alone.append([attention_maps(tiny_model, values[0], kind="attention").to_dict()])
    interpolate(tiny_model, values[0], values[2], 2)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(views, tiny_model, value) for value in values]
        jobs.append(pool.submit(lambda: [attention_maps(tiny_model, values[0], kind="attention").to_dict()]))
        assert [job.result() for job in jobs] == alone
    after = state_of(tiny_model)
    assert after["rest"] == before["rest"]
    assert all(torch.equal(tensor, before["tensors"][name]) for name, tensor in after["tensors"].items())


def test_one_of_several_inputs_is_looked_at(tiny_model: Predictor, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    random_picture(0).save(file)
    both = {"image": str(file), "audio": Waveform(tone(0.8, 300.0), RATE)}
    sound = attention_maps(tiny_model, both, branch="audio", seconds=0.4)
    assert sound.values.shape == (7, 2)
    assert not sound.strength[:3].any()  # positions of the picture
    assert (sound.strength[3:] > 0).all()
    assert attention_maps(tiny_model, both, branch="image", grid=2).strength[3:].max() == 0


def test_bad_options_are_refused_in_a_sentence(tiny_model: Predictor) -> None:
    picture, sound = random_picture(0), Waveform(tone(0.5, 300.0), RATE)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (picture, {"grid": 0}, "grid 0: give a number from 1 to 40"),
        (picture, {"seconds": 1.0}, "seconds: slices are of sounds"),
        (sound, {"grid": 4}, "grid: cells are of pictures"),
        (sound, {"seconds": 0.0}, "seconds 0.0"),
        (picture, {"kind": "gradient"}, "kind: 'gradient' is none of occlusion, attention"),
        (picture, {"kind": "attention", "grid": 3}, "leave out grid"),
        (picture, {"branch": "audio"}, "branch 'audio': is no picture or sound of this input; there are image"),
        ({"image": picture, "audio": sound}, {}, "2 pictures and sounds; name one as branch"),
        (sound, {"kind": "attention"}, "MLP reads no frames by attention; use kind='occlusion'"),
    ]
    for value, options, message in cases:
        with pytest.raises(InputError) as caught:
            attention_maps(tiny_model, value, **options)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no words"):
        caption_map(tiny_model, picture, text=" ")


def test_maps_are_drawn_with_their_heat(tmp_path: Path) -> None:
    cells = np.zeros((2, 4, 4), dtype=np.float32)
    cells[0, 0, 3] = cells[1, 3, 0] = 1
    edges = np.linspace(0, 60, 5)
    maps = Maps(cells, np.array([2.0, 1.0]), edges, edges, ("a", "b"), "image", "image", "occlusion", (60, 60))
    picture = Image.new("RGB", (60, 60), (128, 128, 128))
    drawn = np.asarray(inspection.heat_picture(picture, maps, "b", strength=1.0)).astype(int)
    assert drawn.shape == (384, 384, 3)
    assert drawn[300:, :90].reshape(-1, 3).tolist() == [[255, 234, 70]] * (84 * 90)
    assert (drawn[:280] == [0, 32, 77]).all()
    assert maps.pick("b").tolist() == cells[1].tolist()
    assert maps.overall[0, 3] == 1
    assert maps.overall[3, 0] == pytest.approx(0.5)
    for label in ("c", 2):
        with pytest.raises(InputError, match="is none of a, b"):
            maps.pick(label)
    sound = Waveform(tone(2.0, 500.0), RATE)
    heat = np.zeros(4, dtype=np.float32)
    heat[1] = 1
    shown = np.asarray(inspection.heat_spectrogram(sound, heat)).astype(int)
    width = shown.shape[1]
    assert (shown[-5:, round(width * 0.3) : round(width * 0.48)] == [255, 234, 70]).all()
    assert (shown[-5:, round(width * 0.52) :] == [0, 32, 77]).all()
    for draw, source in ((inspection.heat_picture, picture), (inspection.heat_spectrogram, sound)):
        with pytest.raises(InputError, match="a map of shape"):
            draw(source, np.zeros((1, 2, 3)))


def test_brightness_of_the_colours_rises_evenly() -> None:
    from mmprefix.inspection.drawing import colours

    light = colours(np.linspace(0, 1, 50)) @ np.array([0.2126, 0.7152, 0.0722])
    steps = np.diff(light)
    assert (steps > 0).all()
    assert steps.max() < 3 * steps.mean()
