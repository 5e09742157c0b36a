"""Caches over a state without copies, caches with room, and attention masks, against Transformers and loops."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mmprefix.kv_cache.cache import (
    additive_mask,
    attention_mask,
    cache_over,
    causal_mask,
    preallocated_cache,
    select_rows,
    set_layer,
    text_mask,
)
from mmprefix.kv_cache.state import Layer

LAYERS, BATCH, HEADS, LENGTH, WIDTH = 2, 3, 2, 5, 4


def random_layers(length: int = LENGTH, seed: int = 0) -> tuple[Layer, ...]:
    random = torch.Generator().manual_seed(seed)
    shape = (BATCH, HEADS, length, WIDTH)
    return tuple((torch.randn(shape, generator=random), torch.randn(shape, generator=random)) for _ in range(LAYERS))


def content(cache: DynamicCache) -> list[Layer]:
    """Keys and values of each layer."""
    return [(layer.keys, layer.values) for layer in cast(list[Any], cache.layers)]


def assert_equal(cache: DynamicCache, expected: list[Layer]) -> None:
    for layer, other in zip(content(cache), expected, strict=True):
        assert torch.equal(layer[0], other[0])
        assert torch.equal(layer[1], other[1])


# ------------------------------------------------------------------------------------------------------------- caches


def test_a_cache_over_layers_copies_nothing() -> None:
    layers = random_layers()
    cache = cache_over(layers)
    assert cache.get_seq_length() == LENGTH
    for (keys, values), layer in zip(content(cache), layers, strict=True):
        assert keys is layer[0]
        assert values is layer[1]


def test_an_update_extends_the_cache_and_leaves_the_layers() -> None:
    layers, new = random_layers(), random_layers(2, seed=1)
    before = [tuple(part.clone() for part in layer) for layer in layers]
    cache = cache_over(layers)
    for index, (keys, values) in enumerate(new):
        cache.update(keys, values, index)
    assert cache.get_seq_length() == LENGTH + 2
    assert_equal(
        cache, [(torch.cat([a, c], 2), torch.cat([b, d], 2)) for (a, b), (c, d) in zip(layers, new, strict=True)]
    )
    for layer, old in zip(layers, before, strict=True):
        assert torch.equal(layer[0], old[0])
        assert torch.equal(layer[1], old[1])


def test_a_cache_over_no_layers_is_empty() -> None:
    cache = cache_over(())
    assert cache.get_seq_length() == 0
    keys, values = random_layers()[0]
    cache.update(keys, values, 0)
    assert cache.get_seq_length() == LENGTH


def test_a_layer_is_set_without_a_copy() -> None:
    keys, values = random_layers()[0]
    layer = DynamicLayer()
    assert set_layer(layer, keys, values) is layer
    assert layer.is_initialized
    assert layer.keys is keys
    assert layer.values is values
    assert (layer.dtype, layer.device) == (keys.dtype, keys.device)


def test_a_preallocated_cache_gives_what_a_growing_one_gives() -> None:
    layers, steps = random_layers(), [random_layers(count, seed=count) for count in (1, 3, 2)]
    cache, growing = preallocated_cache(layers, 6), cache_over(layers)
    addresses = [layer[0].data_ptr() for layer in content(cache)]
    for step in steps:
        for index, (keys, values) in enumerate(step):
            returned = cache.update(keys, values, index)
            expected = growing.update(keys, values, index)
            assert torch.equal(returned[0], expected[0])
            assert torch.equal(returned[1], expected[1])
        assert cache.get_seq_length() == growing.get_seq_length()
    assert_equal(cache, content(growing))
    assert [layer[0].data_ptr() for layer in content(cache)] == addresses  # written in place


def test_a_preallocated_cache_leaves_the_layers() -> None:
    layers = random_layers()
    before = [tuple(part.clone() for part in layer) for layer in layers]
    cache = preallocated_cache(layers, 1)
    for index, (keys, values) in enumerate(random_layers(1, seed=1)):
        cache.update(keys, values, index)
        for part in content(cache)[index]:
            part.zero_()
    for layer, old in zip(layers, before, strict=True):
        assert torch.equal(layer[0], old[0])
        assert torch.equal(layer[1], old[1])


def test_selected_inputs_go_on_growing() -> None:
    layers, rows = random_layers(), torch.tensor([2, 0])
    cache, growing = preallocated_cache(layers, 3), cache_over(layers)
    for grown in (cache, growing):
        for index, (keys, values) in enumerate(random_layers(1, seed=1)):
            grown.update(keys, values, index)
    select_rows(cache, rows)
    selected = cache_over([(keys[rows], values[rows]) for keys, values in content(growing)])
    assert_equal(cache, content(selected))
    for grown in (cache, selected):
        for index, (keys, values) in enumerate(random_layers(2, seed=2)):
            grown.update(keys[rows], values[rows], index)
    assert_equal(cache, content(selected))


# -------------------------------------------------------------------------------------------------------------- masks


def test_causal_mask() -> None:
    """A query attends to real positions up to its own, and to itself."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]).bool()
    visible = causal_mask(mask)
    for b, row in enumerate(mask.tolist()):
        for query in range(4):
            for key in range(4):
                assert visible[b, query, key] == (query == key or (key < query and row[key]))


def test_text_mask() -> None:
    """A token attends to its own text up to itself, and to no other text."""
    text = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, -1, -1]])
    offset = torch.tensor([[0, 1, 0, 1, 2], [0, 0, 1, 0, 0]])
    visible = text_mask(text, offset)
    for b in range(2):
        for query in range(5):
            for key in range(5):
                same = text[b, query] == text[b, key]
                assert visible[b, query, key] == (same and offset[b, key] <= offset[b, query])
    assert visible.diagonal(dim1=1, dim2=2).all()  # padding too: no attention row is empty


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_additive_mask_hides_keys_from_softmax(dtype: torch.dtype) -> None:
    visible = torch.tensor([[[1, 0, 1], [0, 1, 0]]]).bool()
    bias = additive_mask(visible, dtype)
    assert bias.shape == (1, 1, 2, 3)
    assert bias.dtype == dtype
    assert bias.isfinite().all()
    weights = (torch.randn(1, 4, 2, 3).to(dtype) + bias).softmax(-1)
    assert torch.equal(weights > 0, visible[:, None].expand(-1, 4, -1, -1))


def test_an_attention_mask_is_that_of_past_and_new_positions() -> None:
    past = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    visible = torch.tensor([[[1, 0], [1, 1]], [[1, 0], [0, 1]]]).bool()
    bias = attention_mask(past, visible, torch.float32)
    assert bias.shape == (2, 1, 2, 5)
    expected = torch.tensor([
        [[1, 1, 0, 1, 0], [1, 1, 0, 1, 1]],
        [[1, 0, 0, 1, 0], [1, 0, 0, 0, 1]],
    ]).bool()  # fmt: skip
    assert torch.equal(bias[:, 0] == 0, expected)


def test_masks_make_packed_texts_independent() -> None:
    """Attention over packed texts equals attention over each text alone behind the same past."""
    random = torch.Generator().manual_seed(0)
    past, lengths = torch.tensor([[1, 1, 0, 1]]).bool(), (2, 3)
    text = torch.tensor([[0, 0, 1, 1, 1]])
    offset = torch.tensor([[0, 1, 0, 1, 2]])
    queries, keys, values = (torch.randn(1, 1, 9, 4, generator=random) for _ in range(3))
    attend: Any = torch.nn.functional.scaled_dot_product_attention
    packed = attend(
        queries[:, :, 4:], keys, values, attn_mask=attention_mask(past, text_mask(text, offset), keys.dtype)
    )
    start = 4
    for length in lengths:
        own = slice(start, start + length)
        own_keys, own_values = (torch.cat([part[:, :, :4], part[:, :, own]], 2) for part in (keys, values))
        mask = attention_mask(past, causal_mask(torch.ones(1, length, dtype=torch.bool)), keys.dtype)
        alone = attend(queries[:, :, own], own_keys, own_values, attn_mask=mask)
        assert torch.allclose(packed[:, :, start - 4 : start - 4 + length], alone, atol=1e-6)
        start += length
