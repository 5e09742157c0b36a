"""Evolution of rows: what CMA-ES itself does, rows in turn, saved and resumed, and a prefix trained by losses alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes, join_layers
from mmprefix.mappers.projected_prefix import ProjectedPrefix
from mmprefix.training.optimization.evolution import RowEvolution
from mmprefix.types import Features
from tiny.captioning_system import quietly
from tiny.decoders import save_decoder
from tiny.fits import fit, prefix_task, text_batch

cmaes: Any = pytest.importorskip("cmaes")
pytestmark = [pytest.mark.numeric, *quietly]
START = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))


def bowl(parameter: Tensor) -> float:
    return float((parameter - torch.arange(8.0).view(2, 4) / 4).square().sum())


@pytest.mark.parametrize("keep", ["best", "mean"])
def test_each_row_is_moved_by_its_own_cma_es(keep: Any) -> None:
    """The searches run by hand, on the loss with the other row as it stands."""
    ours, theirs = torch.nn.Parameter(START.clone()), START.clone()
    optimizer = RowEvolution([ours], lr=0.3, population=6, keep=keep, seed=5)
    searches = [cmaes.CMA(row.double().numpy(), 0.3, population_size=6) for row in START]
    best: dict[int, tuple[float, Any]] = {}
    for step in range(6):
        row = step % 2
        searches[row].reseed_rng(5 * 1_000_003 + step)
        tried = []
        for _ in range(6):
            candidate = searches[row].ask()
            theirs[row] = torch.as_tensor(candidate).float()
            tried.append((candidate, bowl(theirs)))
        searches[row].tell(tried)
        lowest = min(tried, key=lambda one: one[1])
        best[row] = min(best.get(row, (float("inf"), None)), (lowest[1], lowest[0]), key=lambda one: one[0])
        theirs[row] = torch.as_tensor(best[row][1] if keep == "best" else searches[row].mean).float()
        assert optimizer.step(lambda: bowl(ours.detach())) == pytest.approx(lowest[1])
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert ours.grad is None


def test_a_bowl_is_descended_and_a_search_is_resumed(tmp_path: Path) -> None:
    ours = torch.nn.Parameter(START.clone())
    optimizer = RowEvolution([ours], lr=0.3, population=8)
    for _ in range(60):
        optimizer.step(lambda: bowl(ours.detach()))
    assert bowl(ours.detach()) < 0.02 * bowl(START)
    copy = torch.nn.Parameter(ours.detach().clone())
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = RowEvolution([copy], lr=0.3, population=8)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(3):
        optimizer.step(lambda: bowl(ours.detach()))
        resumed.step(lambda: bowl(copy.detach()))
    assert torch.equal(ours, copy)


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"population": 1}, {"keep": "worst"}])
def test_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"RowEvolution\.{next(iter(options))}"):
        RowEvolution([torch.nn.Parameter(START.clone())], **options)


def test_the_projection_has_the_spread_of_the_paper(tmp_path: Path) -> None:
    """Keys and values move by alpha of their own standard deviation where z is of the size sigma."""
    decoder = CausalDecoder(save_decoder(tmp_path, "llama"))
    sizes = Sizes(0, 0, decoder.width, decoder.layers, decoder.heads, decoder.head_width)
    mapper = ProjectedPrefix(sizes, length=40, numbers_a_layer=200, start="a dog barks", alpha=0.3, sigma=0.1)
    mapper.begin(decoder)
    base = decoder.key_values("a dog barks", 40)
    assert torch.allclose(mapper.base, join_layers(base)[0])
    torch.manual_seed(0)
    with torch.no_grad():
        mapper.z.copy_(torch.randn(mapper.z.shape) * 0.1)
        made = mapper(Features.empty(1))
    for own, before in ((made.keys, base.keys), (made.values, base.values)):
        for layer in range(decoder.layers):
            flat = before[layer].flatten()
            mean, std = flat.mean(), flat.std()
            clipped = flat.clamp(mean - 3 * std, mean + 3 * std).std()
            assert float((own - before)[layer].std()) == pytest.approx(0.3 * float(clipped), rel=0.15)
    by_hand = torch.einsum("d,dn->n", mapper.z[1], mapper.basis[1, :, 1]).view(40, decoder.heads, -1)
    by_hand = by_hand * mapper.spread[1, 1] * 0.3 / (200**0.5 * 0.1)
    assert torch.allclose((made.values - base.values)[1, 0], by_hand.transpose(0, 1), atol=1e-4)


def test_a_prefix_evolves_by_losses_alone(tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path / "decoder", "llama", sharp=3.0))
    prefix = partial(ProjectedPrefix, length=3, numbers_a_layer=10, start="the", alpha=1.0)
    task, batch = prefix_task(decoder, prefix), text_batch()
    task.optimizer = partial(RowEvolution, population=8)
    fit(task, tmp_path, [batch])
    assert isinstance(task.model.task_prefix, ProjectedPrefix)
    assert task.model.task_prefix.known
    with torch.no_grad():
        task.model.task_prefix.z.zero_()
        before = float(task.model.text_loss(batch).mean())
    fit(task, tmp_path, [batch], epochs=16)
    with torch.no_grad():
        after = float(task.model.text_loss(batch).mean())
        merged = float(task.model.merged().text_loss(batch).mean())
    assert after < before - 0.1
    assert merged == pytest.approx(after, abs=1e-4)
    assert all(parameter.grad is None for parameter in task.parameters())
