"""Trained tensors of a saved model: sizes are compared before anything is built, hashes when they are read."""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmprefix.encoders.panns import Cnn14
from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.minmax import MinMax
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.prefix_aac import PrefixAAC
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.resampler import Resampler
from mmprefix.mappers.transformer import Transformer
from mmprefix.weights.trained_file import TrainedFile, digest, file_hash, require_digest

SIZES = Sizes(12, 20, 32, 2, 4, 8)
BUILD: dict[str, Any] = {
    "mlp": partial(MLP, length=5),
    "transformer": partial(Transformer, length=5, clip_length=3, layers=2),
    "linear": Linear,
    "prefix-aac": partial(PrefixAAC, length=5, layers=2, heads=4),
    "resampler": partial(Resampler, length=5, heads=4),
    "learned": partial(Learned, length=3),
    "parallel": partial(Parallel, mappers=[partial(MLP, length=2), partial(Linear, stack=2)]),
    "min-max": partial(MinMax, mapper=partial(MLP, length=2)),
    "deep": partial(Deep, mapper=partial(Learned, length=2)),
    "deep-table": partial(DeepTable, length=2),
}


def saved(part: torch.nn.Module, folder: Path) -> TrainedFile:
    """File of the tensors of ``part``, under the names that they have in a model."""
    tensors = {f"mappers.image.{name}": value.clone() for name, value in part.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return TrainedFile.open(folder / "model.safetensors")


@pytest.mark.parametrize("kind", BUILD)
def test_every_mapper_can_be_compared_without_memory(kind: str, tmp_path: Path) -> None:
    file = saved(BUILD[kind](SIZES), tmp_path)
    made: Mapper = file.checked(BUILD[kind], "mappers.image.")(SIZES)
    assert {f"mappers.image.{name}" for name in made.state_dict()} == file.shapes.keys()
    assert all(not tensor.is_meta for tensor in made.state_dict().values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 10**9}, r"tensor 'mappers.image.model.0.bias' has the shape \(80,\), this model's \(1000000000,\)"),
        ({"hidden": 20_000_000}, "has the shape"),
        ({"hidden": -1}, "mappers.image cannot be built with its options .*negative dimension"),
        ({"hidden": 10**30}, "mappers.image cannot be built with its options"),
        ({"hidden": 10**11, "length": 10**6}, "mappers.image cannot be built with its options"),
        ({"layers": 100_000}, "holds 4 tensors of mappers.image, and its recipe asks for more than 1004"),
        ({"layers": 3}, "tensor 'mappers.image.model.2.bias' has the shape"),
        ({"length": 6}, "has the shape"),
    ],
)
def test_sizes_are_compared_before_anything_is_built(options: dict[str, int], message: str, tmp_path: Path) -> None:
    file = saved(MLP(SIZES, length=5), tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message) as error:
        file.checked(partial(MLP, **{"length": 5, **options}), "mappers.image.")(SIZES)
    assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_tuned_encoder_is_compared_without_memory(tmp_path: Path) -> None:
    sizes = {"mels": 8, "channels": (4, 8), "classes": 5}
    file = saved(Cnn14(None, **sizes), tmp_path)
    file.compare(partial(Cnn14, None, **sizes), "mappers.image.")
    with pytest.raises(InputError, match="has the shape"):
        file.compare(partial(Cnn14, None, **{**sizes, "channels": (10**6, 10**7)}), "mappers.image.")
    with pytest.raises(InputError, match="has the shape"):
        file.compare(partial(Cnn14, None, **{**sizes, "mels": 10**8}), "mappers.image.")


def test_a_lora_has_the_rank_of_its_tensors(tmp_path: Path) -> None:
    save_file({"decoder.lm.lora_A.weight": torch.zeros(8, 32)}, tmp_path / "model.safetensors")
    file = TrainedFile.open(tmp_path / "model.safetensors")
    file.require_dimension("decoder.", "lora_rank", 8)
    with pytest.raises(InputError, match=r"lora_rank=1000000000: no tensor of .*model.safetensors is of this size"):
        file.require_dimension("decoder.", "lora_rank", 10**9)


def test_a_flipped_bit_is_found_by_the_hash(tmp_path: Path) -> None:
    file = saved(MLP(SIZES, length=5), tmp_path)
    right = file_hash(file.path)
    assert file.tensors(right).keys() == file.tensors(None).keys() == file.shapes.keys()
    content = bytearray(file.path.read_bytes())
    content[-3] ^= 1
    file.path.write_bytes(content)
    file.tensors(None)
    with pytest.raises(InputError, match=r"model.safetensors: is not the file that was saved here .*copy the whole"):
        file.tensors(right)


def test_the_digest_changes_with_name_type_shape_and_bits() -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.tensor(1.0)}
    others = [
        {**tensors, "a": torch.arange(6.0).view(2, 3)},
        {**tensors, "a": torch.arange(6.0).bfloat16()},
        {**tensors, "b": torch.tensor(1.0000001)},
        {"a": tensors["a"], "c": tensors["b"]},
    ]
    assert digest(dict(reversed(tensors.items()))) == digest(tensors)
    assert len({digest(each) for each in (tensors, *others)}) == 5
    require_digest(tensors, digest(tensors), "last.ckpt")
    require_digest(tensors, None, "last.ckpt")
    for other in others:
        with pytest.raises(InputError, match=r"last.ckpt: its trained tensors are not those that were written"):
            require_digest(other, digest(tensors), "last.ckpt")
