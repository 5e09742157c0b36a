"""Several saved models write one text of a file: as one of them where the join says so, refused where they differ."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

import mmprefix
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.generation.several import Guidance, Product
from mmprefix.inference.predictor import Predictor
from mmprefix.inference.prefixes import join_models
from mmprefix.mappers.learned import Learned
from mmprefix.model import PrefixLM
from tiny.decoders import save_decoder
from tiny.models import frozen_parts, media_files, save_model


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return frozen_parts(tmp_path_factory.mktemp("parts"))


def test_saved_models_write_together(parts: dict[str, Path], tmp_path: Path) -> None:
    pictures = [file for file in media_files(tmp_path / "media") if file.suffix == ".png"]
    first = mmprefix.load(save_model(tmp_path / "first", parts, "image"))
    torch.manual_seed(5)
    second = Predictor(PrefixLM({}, CausalDecoder(str(parts["decoder"])), partial(Learned, length=4, std=1.0)))
    alone, other = first(pictures, num_beams=3), second([{}] * 4, num_beams=3, max_new_tokens=8)
    assert alone != other
    assert join_models([first, None], Guidance(1.0))(pictures, num_beams=3) == alone
    joined = join_models([first, second, None], Product([1, 0, 0]))
    assert joined(pictures, num_beams=3) == alone
    with pytest.raises(InputError, match="no stream, choose, score"):
        joined.choose(pictures, ["a", "b"])
    with pytest.raises(InputError, match="not saved as one"):
        joined.save(tmp_path / "joined")


def test_models_that_cannot_be_joined_are_refused(parts: dict[str, Path], tmp_path: Path) -> None:
    ours = Predictor(PrefixLM({}, CausalDecoder(str(parts["decoder"])), Learned))
    foreign = Predictor(PrefixLM({}, CausalDecoder(save_decoder(tmp_path, seed=9)), Learned))
    tuned = Predictor(PrefixLM({}, CausalDecoder(str(parts["decoder"]), lora_rank=1), Learned))
    with pytest.raises(InputError, match="over one decoder"):
        join_models([ours, foreign], Guidance())
    with pytest.raises(InputError, match="is trained"):
        join_models([ours, tuned], Guidance())
    with pytest.raises(InputError, match="needs a model"):
        join_models([None, None], Guidance())
    with pytest.raises(InputError, match="two prefixes"):
        join_models([ours], Guidance())
