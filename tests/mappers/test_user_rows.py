"""Per-user prefixes: rows by user, strangers, adding and removing without touching others, ULPT's formula and bytes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from mmprefix.encoders.user_id import UserId, id_bytes
from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.calibrated import Calibrated
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.ulpt import UserULPT
from mmprefix.mappers.user_prefix import DeepUserPrefix, UserPrefix
from mmprefix.mappers.user_rows import UserRows
from mmprefix.media.source import Texts
from mmprefix.parts import builder_from_recipe, to_recipe
from mmprefix.types import AnyPrefix, DeepPrefix, Features

pytestmark = pytest.mark.numeric
SIZES = Sizes(0, 8, 12, 2, 3, 5)
KINDS = {
    "soft": partial(UserPrefix, length=3, capacity=6),
    "deep": partial(DeepUserPrefix, length=2, capacity=6),
    "ulpt": partial(UserULPT, length=3, rank=2, capacity=6),
}


@pytest.fixture(params=KINDS)
def mapper(request: pytest.FixtureRequest) -> UserRows:
    torch.manual_seed(0)
    built = KINDS[request.param](SIZES).eval()
    built.observe(features("ann", "bo", "ann", "çé 🐕"))
    return built


def features(*users: str) -> Features:
    hashes = torch.stack([id_bytes(user) for user in users])
    return replace(Features.empty(len(users)), pooled=hashes)


def numbers(prefix: AnyPrefix) -> Tensor:
    """Numbers of a prefix with the batch first."""
    if isinstance(prefix, DeepPrefix):
        return torch.stack([prefix.keys, prefix.values]).transpose(0, 2).flatten(1)
    return prefix.embeds.flatten(1)  # type: ignore[union-attr]


def test_each_row_of_a_batch_has_its_own_user(mapper: UserRows) -> None:
    together = numbers(mapper(features("bo", "ann", "stranger", "çé 🐕", "ann")))
    for row, user in enumerate(("bo", "ann", "other stranger", "çé 🐕", "ann")):
        assert torch.allclose(together[row], numbers(mapper(features(user)))[0], atol=1e-6)
    assert len({tuple(row.tolist()) for row in together}) == 4


def test_a_stored_hash_in_half_precision_is_the_same_user(mapper: UserRows) -> None:
    own = features("ann")
    half = replace(own, pooled=own.pooled.half().float())
    assert torch.equal(numbers(mapper(half)), numbers(mapper(own)))
    encoder = UserId()
    assert torch.equal(encoder.preprocess(Texts(("ann",)), 0.0, None), own.pooled[0])


def test_adding_and_removing_leaves_the_others_as_they_are(mapper: UserRows) -> None:
    before = numbers(mapper(features("ann", "bo", "çé 🐕", "new")))
    mapper.add(id_bytes("new"))
    assert torch.allclose(
        numbers(mapper(features("ann", "bo", "çé 🐕", "new"))), before, atol=1e-6
    )  # it begins as nobody's
    mapper.add(id_bytes("new"), torch.ones_like(mapper.rows[0]))
    assert not torch.equal(numbers(mapper(features("new"))), before[3:])
    kept = mapper.remove(id_bytes("bo"))
    after = numbers(mapper(features("ann", "bo", "çé 🐕")))
    assert torch.allclose(after[[0, 2]], before[[0, 2]], atol=1e-6)
    assert torch.allclose(after[1], before[3], atol=1e-6)
    assert not (mapper.rows == kept).all(1).any()
    mapper.add(id_bytes("bo"), kept)
    assert torch.allclose(numbers(mapper(features("bo"))), before[1:2], atol=1e-6)
    with pytest.raises(InputError, match="this user has no row"):
        mapper.remove(id_bytes("stranger"))


def test_gradients_reach_the_users_of_the_batch_alone(mapper: UserRows) -> None:
    numbers(mapper(features("bo", "stranger"))).square().sum().backward()
    assert mapper.rows.grad is not None
    touched = mapper.rows.grad.any(1).nonzero()[:, 0].tolist()
    assert touched == sorted([0, int(mapper.index(features("bo").pooled)[0])])


def test_rows_are_saved_with_the_users_they_belong_to(mapper: UserRows) -> None:
    rebuilt = builder_from_recipe(to_recipe(mapper), UserRows)(SIZES).eval()
    rebuilt.load_state_dict(mapper.state_dict())
    users = features("ann", "bo", "stranger")
    assert torch.equal(numbers(rebuilt(users)), numbers(mapper(users)))
    assert rebuilt.known


def test_full_tables_and_other_encoders_are_refused() -> None:
    table = UserPrefix(SIZES, length=1, capacity=2)
    table.observe(features("a", "b", "a"))
    with pytest.raises(InputError, match=r"UserPrefix\.capacity 2: all rows are taken"):
        table.add(id_bytes("c"))
    table.remove(id_bytes("a"))
    table.add(id_bytes("c"))
    for sizes in (Sizes(4, 8, 12), Sizes(0, 9, 12), Sizes(4, 0, 12)):
        with pytest.raises(InputError, match="reads the id of a user"):
            UserPrefix(sizes)
    with pytest.raises(InputError, match="capacity 0"):
        UserPrefix(SIZES, capacity=0)
    with pytest.raises(InputError, match="rank 0"):
        UserULPT(SIZES, rank=0)
    with pytest.raises(InputError, match="inside it would read other numbers"):
        Calibrated(SIZES, mapper=partial(UserPrefix, length=1))


def test_ulpt_is_the_papers_formula_and_its_users_are_small() -> None:
    sizes = Sizes(0, 8, 768)
    mapper = UserULPT(sizes, length=10, rank=16, capacity=3, seed=5)
    mapper.eval().observe(features("ann"))
    with torch.no_grad():
        mapper.scale.normal_()
        mapper.shift.normal_()
    z = mapper.rows[int(mapper.index(features("ann").pooled)[0])].view(10, 16)
    basis = torch.randn(16, 768, generator=torch.Generator().manual_seed(5))
    embeds = mapper(features("ann")).embeds[0].detach()
    for i, j in ((0, 0), (3, 700), (9, 767)):
        expected = torch.as_tensor(sum(z[i, k] * basis[k, j] for k in range(16)) * mapper.scale[j] + mapper.shift[j])
        assert embeds[i, j] == pytest.approx(expected.item(), abs=1e-4)
    shared = sum(p.numel() for p in mapper.parameters()) - mapper.rows.numel()
    assert mapper.rows.shape[1] + shared == 10 * 16 + 2 * 768  # n*r + 2d
    assert len(save({"z": z.half().contiguous()})) <= 1024
    soft = UserPrefix(sizes, length=10, capacity=1)
    assert len(save({"prefix": soft.rows[1].detach().clone()})) <= 64 * 1024


def test_a_table_of_users_reads_input_and_a_learned_prompt_does_not() -> None:
    assert UserPrefix(SIZES).reads_input
    assert not UserPrefix(SIZES).reads_frames
    assert not Learned(SIZES).reads_input


def test_hidden_users_train_nobodys_row() -> None:
    torch.manual_seed(0)
    mapper = UserPrefix(SIZES, length=1, capacity=4, nobody=0.5)
    mapper.observe(features("ann"))
    rows = mapper(features(*["ann"] * 200)).embeds[:, 0]
    hidden = (rows == mapper.rows[0]).all(1)
    assert 60 < int(hidden.sum()) < 140
    assert not (mapper.eval()(features(*["ann"] * 20)).embeds[:, 0] == mapper.rows[0]).all(1).any()
    with pytest.raises(InputError, match=r"UserPrefix\.nobody 1: give a share"):
        UserPrefix(SIZES, nobody=1)


def test_nobody_is_no_user(mapper: UserRows) -> None:
    mapper.observe(features("-", "ann"))
    assert mapper.users == 3
    assert torch.allclose(numbers(mapper(features("-"))), numbers(mapper(features("a stranger"))), atol=1e-6)
    with pytest.raises(InputError, match="the id '-' is that of nobody"):
        mapper.add(id_bytes("-"))
