"""Part: recipes record the arguments of a part and build it again; classes that are no part are never called."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmprefix.decoders.base import Decoder
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.parallel import Parallel
from mmprefix.parts import Part, builder_from_recipe, from_recipe, to_recipe
from tiny import models as tiny_models


class Whole(Part):
    """Part with two parts and some plain values as arguments."""

    def __init__(self, left: Any, many: tuple[Any, ...] = (), *, folder: Path = Path("here"), **more: Any) -> None:
        self.left, self.many, self.folder, self.more = left, many, folder, more


class Leaf(Part):
    def __init__(self, size: int, name: str = "leaf") -> None:
        self.size, self.name = size, name


MODULE = f"{__name__}."


def test_a_recipe_records_class_and_arguments_with_defaults() -> None:
    recipe = to_recipe(Leaf(3))
    assert recipe == {"class_path": f"{MODULE}Leaf", "init_args": {"size": 3, "name": "leaf"}}
    again = from_recipe(recipe, Leaf)
    assert (again.size, again.name) == (3, "leaf")
    assert to_recipe(again) == recipe


def test_parts_within_parts_survive_yaml_and_json() -> None:
    whole = Whole(Leaf(1, name="a"), (Leaf(2), {"deep": [Leaf(3)]}), folder=Path("x/y"), extra=1)
    recipe = to_recipe(whole)
    assert recipe["init_args"]["folder"] == "x/y"
    for data in (yaml.safe_load(yaml.safe_dump(recipe)), json.loads(json.dumps(recipe))):
        again = from_recipe(data, Whole)
        assert to_recipe(again) == recipe
        assert again.left.name == "a"
        assert again.more == {"extra": 1}
        assert again.many[1]["deep"][0].size == 3


def test_mappers_of_the_library_are_built_again_with_the_same_shapes() -> None:
    sizes = Sizes(12, 6, 16)
    mapper = Parallel(sizes, mappers=[partial(MLP, length=2, hidden=8), Linear])
    data = yaml.safe_load(yaml.safe_dump(to_recipe(mapper)))
    again = builder_from_recipe(data, Mapper)(sizes)
    assert to_recipe(again) == to_recipe(mapper)
    shapes = [{name: t.shape for name, t in m.state_dict().items()} for m in (mapper, again)]
    assert shapes[0] == shapes[1]
    again.load_state_dict(mapper.state_dict())


def test_a_copy_and_an_unpickled_part_keep_their_recipe() -> None:
    leaf = Leaf(5, "b")
    for again in (copy.deepcopy(leaf), pickle.loads(pickle.dumps(leaf))):
        assert to_recipe(again) == to_recipe(leaf)


def test_a_model_is_built_again_from_its_recipe(tmp_path: Path) -> None:
    parts = tiny_models.frozen_parts(tmp_path / "parts")
    model = tiny_models.build_model(parts, "image", "audio")
    data = yaml.safe_load(yaml.safe_dump(model.recipe()))
    again = type(model).from_recipe(data)
    assert again.recipe() == model.recipe()
    assert {k: v.shape for k, v in again.trained.items()} == {k: v.shape for k, v in model.trained.items()}
    frozen = {k: v for k, v in model.state_dict().items() if k not in model.trained}
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in frozen.items())
    decoder = from_recipe(to_recipe(model.decoder), Decoder)
    assert isinstance(decoder, CausalDecoder)
    assert decoder.identity == model.decoder.identity


@pytest.mark.parametrize(
    ("data", "contract", "message"),
    [
        ({"class_path": f"{MODULE}Laef"}, Leaf, "cannot be imported"),
        ({"class_path": "no.such.module.Leaf"}, Leaf, "not imported"),
        ({"class_path": "Leaf"}, Leaf, "cannot be imported"),
        ({}, Leaf, "cannot be imported"),
        ({"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}}, Part, "not imported"),
        ({"class_path": "os.system", "init_args": {"command": "true"}}, Part, "not imported"),
        ({"class_path": "mmprefix.mappers.mlp.MLP"}, Encoder, "is not a subclass of Encoder"),
        ({"class_path": f"{MODULE}Leaf", "init_args": {"size": 1, "wide": 2}}, Leaf, "unexpected keyword argument"),
        ({"class_path": f"{MODULE}Leaf", "init_args": {}}, Leaf, "missing 1 required positional argument: 'size'"),
        ({"class_path": f"{MODULE}Leaf", "init_args": {"size": {"class_path": "os.getcwd"}}}, Leaf, "not imported"),
        ({"class_path": "mmprefix.mappers.mlp.MLP", "init_args": {"lenght": 2}}, Mapper, "argument 'lenght'"),
        ({"class_path": "mmprefix.mappers.mlp.MLP"}, Mapper, "missing 1 required positional argument: 'sizes'"),
    ],
)  # fmt: skip
def test_a_class_that_is_no_part_is_never_called(data: dict[str, Any], contract: type[Part], message: str) -> None:
    with pytest.raises(InputError, match="recipe: ") as error:
        from_recipe(data, contract)
    assert message in str(error.value)
    assert str(data.get("class_path", "")) in str(error.value) or "os.getcwd" in str(error.value)


def test_every_contract_is_a_part() -> None:
    for contract in (Encoder, Mapper, Decoder):
        assert issubclass(contract, Part)
        assert inspect.isabstract(contract)
