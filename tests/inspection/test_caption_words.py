"""Loss of each word of a caption, against one plain run of the network over prefix, prompt and text."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmprefix import Predictor
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.base import Encoder
from mmprefix.encoders.image_input import ReadPicture
from mmprefix.inspection import caption_map
from mmprefix.mappers.mlp import MLP
from mmprefix.model import Branch, PrefixLM
from mmprefix.types import Features, Media
from mmprefix.weights.source import Provenance

PROMPT, TEXT = "seen:", "a largest red circle, beside unknownwords"
GREY, BRIGHT = (60, 60, 60), (220, 90, 30)


def to_pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1) / 255


class TopLeft(Encoder):
    """Summary: the colour of the first pixel."""

    input_kind = "image"

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.pooled_dim = 0, 3
        self.preprocess, self.identity = ReadPicture(to_pixels), Provenance("top left", None, "top-left")
        self.freeze()

    def encode(self, media: Media) -> Features:
        return summary(media.values[:, :, 0, 0])


def summary(pooled: Tensor) -> Features:
    return Features(pooled.new_zeros(len(pooled), 0, 0), pooled.new_zeros(len(pooled), 0).bool(), pooled)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(2)
    branch = Branch(TopLeft(), partial(MLP, length=3, hidden=8))
    return Predictor(PrefixLM({"image": branch}, CausalDecoder("mmprefix:world/frozen/decoder")))


def picture() -> Image.Image:
    """Grey, but for a bright square in the corner that the encoder looks at."""
    image = Image.new("RGB", (8, 8), GREY)
    image.paste(BRIGHT, (0, 0, 4, 4))
    return image


@torch.no_grad()
def words_by_hand(predictor: Predictor, colour: tuple[int, ...]) -> list[float]:
    """Log-probability of each word of TEXT behind a picture of this colour: a word begins with a space."""
    decoder: Any = predictor.model.decoder
    mapper: Any = predictor.model.mapper("image")
    ids = [decoder.tokenizer(text)["input_ids"] for text in (PROMPT, f" {TEXT}")]
    lm = decoder.language_model.lm
    prefix = mapper(summary(torch.tensor([colour]) / 255)).embeds
    words = lm.get_input_embeddings()(torch.tensor([ids[0] + ids[1]]))
    scores = lm(inputs_embeds=torch.cat([prefix, words], 1)).logits[0].log_softmax(-1)
    first = prefix.shape[1] + len(ids[0])
    sums: list[float] = []
    for place, number in enumerate(ids[1]):
        if decoder.tokenizer.convert_ids_to_tokens(number).startswith("Ġ"):
            sums.append(0.0)
        sums[-1] += float(scores[first + place - 1, number])
    return sums


def test_a_words_loss_is_that_of_all_its_tokens(predictor: Predictor) -> None:
    decoder: Any = predictor.model.decoder
    assert len(decoder.tokenizer(f" {TEXT}")["input_ids"]) > len(TEXT.split())  # words of several tokens
    grey = tuple(round(value) for value in np.asarray(picture(), dtype=np.float64).reshape(-1, 3).mean(0))
    seen, hidden = words_by_hand(predictor, BRIGHT), words_by_hand(predictor, grey)
    losses = [a - b for a, b in zip(seen, hidden, strict=True)]
    maps = caption_map(predictor, picture(), text=TEXT, grid=1, prompt=PROMPT)
    assert maps.labels == tuple(TEXT.split())
    assert max(losses) > 0.01
    assert min(losses) < -0.01  # a word that gains is cold
    assert maps.strength.tolist() == pytest.approx([max(0.0, loss) for loss in losses], abs=1e-3)


def test_a_cell_that_the_encoder_does_not_look_at_is_cold(predictor: Predictor) -> None:
    maps = caption_map(predictor, picture(), text=TEXT, grid=2, prompt=PROMPT)
    assert maps.values[:, 0, 0].max() == 1
    rest = maps.values.copy()
    rest[:, 0, 0] = 0
    assert not rest.any()


def test_the_models_own_caption_is_taken_without_a_text(predictor: Predictor) -> None:
    own = predictor(picture(), prompt="a large")  # the mapper is not trained, but the decoder knows how to go on
    maps = caption_map(predictor, picture(), grid=2, prompt="a large")
    assert maps.labels == tuple(own.split())
    same = caption_map(predictor, picture(), text=own, grid=2, prompt="a large")
    assert np.array_equal(maps.values, same.values)
