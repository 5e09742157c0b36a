"""Several saved models write one text of a file: as one of them where the join says so, refused where they differ."""

from __future__ import annotations

from collections.abc import Callable
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
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.dept import DecomposedPrompt
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.llama_adapter import LlamaAdapter
from mmprefix.mappers.ntk import NTKAttention
from mmprefix.mappers.unipelt import UniPELTPrefix
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


BESIDE: dict[str, Callable[[Sizes], Mapper]] = {
    "llama adapter": partial(LlamaAdapter, length=3, first=0),
    "ntk": partial(NTKAttention, std=1.0),
    "unipelt": partial(UniPELTPrefix, length=3, std=1.0),
    "dept": partial(DecomposedPrompt, length=2, reach=5, rank=2),
}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_the_cache_counts_for_its_own_model_alone(
    name: str, beams: int, parts: dict[str, Path]
) -> None:
    """Text written by one model of several, whatever it has beside its cache, is that of the model alone."""
    torch.manual_seed(6)
    decoder = CausalDecoder(str(parts["decoder"]))
    models = [PrefixLM({}, decoder, build) for build in (partial(Learned, length=4, std=1.0), BESIDE[name])]
    with torch.no_grad():
        for parameter in models[1].trained_parameters().values():
            parameter.add_(torch.randn_like(parameter))
    plain, beside = (Predictor(model) for model in models)

    def written(predictor: Predictor) -> list[tuple[str, float]]:
        rows = predictor.candidates([{}] * 2, prompt=["a dog", "rain"], num_return=1, num_beams=beams, max_new_tokens=8)
        return [(row[0].text, row[0].score) for row in rows]

    alone = written(beside)
    assert [text for text, _ in alone] != [text for text, _ in written(plain)]
    for order, weights in (([plain, beside], [0, 1]), ([beside, plain], [1, 0]), ([beside, None, beside], [0, 0, 1])):
        joined = written(join_models(order, Product(weights)))
        assert [text for text, _ in joined] == [text for text, _ in alone]
        assert [score for _, score in joined] == pytest.approx([score for _, score in alone], abs=1e-3)
    none = written(join_models([None, plain, beside], Product([0, 1, 0])))
    assert [score for _, score in none] == pytest.approx([score for _, score in written(plain)], abs=1e-3)


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
