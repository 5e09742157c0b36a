"""Prefixes made from texts, Prompter's, IAPT's and HyperTuning's: formulas written out, padding, absent texts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.examples_prefix import ExamplesPrefix
from mmprefix.mappers.instruction_prompt import DeepInstructionPrompt, InstructionPrompt, Rational
from mmprefix.mappers.prompter import Prompter
from mmprefix.parts import builder_from_recipe, to_recipe
from mmprefix.types import AnyPrefix, DeepPrefix, Features, Prefix

D, G, E, L, H, K = 6, 8, 12, 2, 3, 5
SIZES = Sizes(D, G, E, L, H, K)
BUILD: dict[str, Callable[[], Mapper]] = {
    "prompter": lambda: Prompter(SIZES, length=4, heads=2, bottleneck=7),
    "prompter as wide": lambda: Prompter(Sizes(E, 0, E, L, H, 4), length=4, bottleneck=7),
    "instruction": lambda: InstructionPrompt(SIZES, length=3, bottleneck=5),
    "instruction deep": lambda: DeepInstructionPrompt(SIZES, length=3, bottleneck=5),
    "examples": lambda: ExamplesPrefix(SIZES, length=3, heads=2),
    "examples narrow": lambda: ExamplesPrefix(Sizes(D, 0, E, L, H, K), length=3, layers=1, heads=2, hidden=8),
}


@pytest.fixture(params=BUILD)
def mapper(request: pytest.FixtureRequest) -> Mapper:
    torch.manual_seed(1)
    made = BUILD[request.param]().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return made


def features(sizes: Sizes, lengths: list[int], seed: int = 0) -> Features:
    torch.manual_seed(seed)
    frames = torch.randn(len(lengths), max(lengths), sizes.frames)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Features(frames, mask, torch.randn(len(lengths), sizes.summary))


def numbers(prefix: AnyPrefix) -> Tensor:
    """Numbers of a prefix with the batch first, and then the positions."""
    if isinstance(prefix, DeepPrefix):
        return torch.stack([prefix.keys, prefix.values]).permute(2, 4, 0, 1, 3, 5).flatten(2)
    assert isinstance(prefix, Prefix)
    return prefix.embeds


def test_a_batch_equals_its_items_and_padding_is_not_read(mapper: Mapper) -> None:
    clean = features(mapper.sizes, [7, 4, 1])
    dirty = Features(torch.where(clean.mask[..., None], clean.frames, 1e3), clean.mask, clean.pooled)
    together = numbers(mapper(dirty))
    for b, n in enumerate([7, 4, 1]):
        row = slice(b, b + 1)
        alone = Features(clean.frames[row, :n], clean.mask[row, :n], clean.pooled[row])
        assert torch.allclose(together[b], numbers(mapper(alone))[0], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_a_row_without_a_text_has_one_prefix_whoever_is_beside_it(mapper: Mapper) -> None:
    both = features(mapper.sizes, [3, 5]).mask_rows(torch.tensor([True, False]))
    absent = Features.empty(1, frames=mapper.sizes.frames, summary=mapper.sizes.summary)
    own, none = numbers(mapper(both)), numbers(mapper(absent))
    assert own.isfinite().all()
    assert torch.allclose(own[0], none[0], atol=1e-5)
    assert not torch.allclose(own[1], none[0], atol=1e-3)


def test_every_number_is_trained_and_a_recipe_builds_it_again(mapper: Mapper) -> None:
    own = features(mapper.sizes, [4, 2, 3]).mask_rows(torch.tensor([False, False, True]))
    prefix = mapper(own)
    assert prefix.mask.all()
    (numbers(prefix) ** 2 + numbers(prefix)).sum().backward()
    assert [name for name, p in mapper.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    again = builder_from_recipe(to_recipe(mapper), Mapper)(mapper.sizes)
    again.load_state_dict(mapper.state_dict())
    assert torch.equal(numbers(again.eval()(own)), numbers(prefix))


def test_prompters_formula() -> None:
    """softmax(Q K' / sqrt(d)) V of the description, then x + up(relu(down(LN(x)))) a layer, of keys and of values."""
    torch.manual_seed(2)
    mapper = Prompter(Sizes(E, 0, E, L, H, 4), length=4, heads=1, bottleneck=7).eval()
    state, own = mapper.state_dict(), features(mapper.sizes, [5, 5])
    q, k, v = (
        x @ weight.T + bias
        for x, weight, bias in zip(
            (state["queries"].expand(2, -1, -1), own.frames, own.frames),
            state["attention.in_proj_weight"].chunk(3),
            state["attention.in_proj_bias"].chunk(3),
            strict=True,
        )
    )
    seen = (q @ k.mT / E**0.5).softmax(2) @ v
    seen = seen @ state["attention.out_proj.weight"].T + state["attention.out_proj.bias"]
    prefix = mapper(own)
    for place, made in enumerate([*prefix.keys, *prefix.values]):
        ln, down, up = ((state[f"adapters.{place}.{n}.weight"], state[f"adapters.{place}.{n}.bias"]) for n in (0, 1, 4))
        normal = (seen - seen.mean(2, True)) / (seen.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt() * ln[0] + ln[1]
        x = seen + (normal @ down[0].T + down[1]).clamp(min=0) @ up[0].T + up[1]
        assert torch.allclose(made.transpose(1, 2).flatten(2), x, atol=1e-5)  # (B P H*K)


def test_the_rational_activation_begins_as_gelu_and_is_learned() -> None:
    x = torch.linspace(-4, 4, 81)
    activation = Rational()
    assert (activation(x) - F.gelu(x)).abs().max() < 0.005
    above, below = activation.above.detach(), activation.below.detach()
    by_hand = [
        sum(a * v**n for n, a in enumerate(above)) / (1 + abs(sum(b * v ** (n + 1) for n, b in enumerate(below))))
        for v in x
    ]
    assert torch.allclose(activation(x).detach(), torch.stack([torch.as_tensor(value) for value in by_hand]), atol=1e-4)
    activation(x).square().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).all() for p in activation.parameters())


def test_the_instructions_formula() -> None:
    """Each position pools the frames by its own softmax; each layer has a pooling and an activation of its own."""
    torch.manual_seed(3)
    mapper = DeepInstructionPrompt(SIZES, length=3, bottleneck=5).eval()
    own = features(SIZES, [6, 6])
    prefix = mapper(own)
    for layer, generator in enumerate(mapper.generators):
        state = generator.state_dict()
        for b in range(2):
            for position in range(3):
                weights = (own.frames[b] @ state["pool.weight"][position]).softmax(0)
                pooled = (weights[:, None] * own.frames[b]).sum(0)
                inner = cast(Any, generator).activation(pooled @ state["down.weight"].T + state["down.bias"])
                out = inner @ state["up.weight"].T + state["up.bias"]
                assert torch.allclose(prefix.keys[layer, b, :, position].flatten(), out[: H * K], atol=1e-5)
                assert torch.allclose(prefix.values[layer, b, :, position].flatten(), out[H * K :], atol=1e-5)


def test_examples_become_keys_and_values_by_two_networks() -> None:
    torch.manual_seed(4)
    mapper = ExamplesPrefix(SIZES, length=3, heads=2).eval()
    own = features(SIZES, [6, 2])
    read, prefix = mapper.read(own), mapper(own)
    assert read.shape == (2, 3, E)
    for name, made in (("to_keys", prefix.keys), ("to_values", prefix.values)):
        state = {k.removeprefix(f"{name}."): v for k, v in mapper.state_dict().items() if k.startswith(name)}
        out = F.gelu(read @ state["0.weight"].T + state["0.bias"]) @ state["2.weight"].T + state["2.bias"]
        assert torch.allclose(made.permute(1, 3, 0, 2, 4).flatten(2), out, atol=1e-5)


@pytest.mark.parametrize(("make", "message"), [
    (partial(Prompter, Sizes(0, G, E, L, H, K)), "Prompter reads the encoder's frames"),
    (partial(Prompter, SIZES, heads=5), "heads=5 does not divide the width 12"),
    (partial(ExamplesPrefix, SIZES, heads=5), "heads=5 does not divide the width 12"),
    (partial(InstructionPrompt, Sizes(0, G, E)), "InstructionPrompt reads the encoder's frames"),
    (partial(DeepInstructionPrompt, Sizes(D, G, E)), "makes keys and values for every layer"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(make: Callable[[], Mapper], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
