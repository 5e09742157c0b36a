"""State-offset tuning against Mamba's recurrence written out step by step, with and without a cache."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, silu, softplus
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
)

from mmprefix.decoders.state_space.state_offset import StateOffset
from mmprefix.errors import InputError

V, E, L, N, WIDTH = 20, 16, 2, 4, 32
IDS = torch.tensor([[3, 7, 1, 19, 4, 4, 11], [5, 2, 2, 9, 0, 13, 6]])


FAMILIES = {"mamba": (MambaConfig, MambaForCausalLM), "falcon_mamba": (FalconMambaConfig, FalconMambaForCausalLM)}


def mamba(seed: int = 0, family: str = "mamba") -> Any:
    torch.manual_seed(seed)
    configured, model = FAMILIES[family]
    config: Any = configured(vocab_size=V, hidden_size=E, num_hidden_layers=L, state_size=N, expand=2, time_step_rank=3)
    lm: Any = cast(Any, model)(config).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
        for layer in lm.backbone.layers:
            layer.mixer.A_log.copy_(torch.rand(WIDTH, N))
            layer.mixer.D.copy_(torch.randn(WIDTH))
    return lm


def mixer_by_hand(mixer: Any, x: Tensor, state_offset: Tensor | None, output_offset: Tensor | None) -> Tensor:
    """One text (T E) through a mixer, token by token: h' is added to the state that is read, not to the one kept."""
    inner, gate = (mixer.in_proj.weight @ x.T).chunk(2)  # (D' T)
    kernel, taps = mixer.conv1d.weight[:, 0], mixer.conv1d.weight.shape[-1]
    padded = torch.cat([torch.zeros(WIDTH, taps - 1), inner], 1)
    state, rows, a = torch.zeros(WIDTH, N), [], -mixer.A_log.exp()
    for t in range(len(x)):
        u = silu((padded[:, t : t + taps] * kernel).sum(1) + mixer.conv1d.bias)
        rank = mixer.dt_proj.weight.shape[1]
        step, b, c = (mixer.x_proj.weight @ u).split([rank, N, N])
        if hasattr(mixer, "rms_eps"):  # FalconMamba divides each by its root mean square
            step, b, c = (part / (part.square().mean() + mixer.rms_eps).sqrt() for part in (step, b, c))
        step = softplus(mixer.dt_proj.weight @ step + mixer.dt_proj.bias)
        state = torch.exp(step[:, None] * a) * state + step[:, None] * b * u[:, None]
        read = state if state_offset is None else state + state_offset
        y = (read @ c + mixer.D * u + (0 if output_offset is None else output_offset)) * silu(gate[:, t])
        rows.append(mixer.out_proj.weight @ y)
    return torch.stack(rows)


def logits_by_hand(lm: Any, ids: Tensor, offset: StateOffset | None) -> Tensor:
    """Logits (T V) of one text."""
    x = lm.backbone.embeddings.weight[ids]
    for number, layer in enumerate(lm.backbone.layers):
        own = None if offset is None else offset.offset[number]
        pair = (own, None) if own is not None and own.dim() == 2 else (None, own)
        x = x + mixer_by_hand(layer.mixer, layer.norm(x), *pair)
    return lm.backbone.norm_f(x) @ lm.lm_head.weight.T


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["state", "output"])
@torch.no_grad()
def test_logits_equal_the_recurrence(kind: Any, family: str) -> None:
    lm = mamba(family=family)
    plain = lm(IDS, use_cache=False).logits
    assert torch.allclose(plain[0], logits_by_hand(lm, IDS[0], None), atol=1e-4)
    offset = StateOffset(lm, kind)
    assert torch.equal(lm(IDS, use_cache=False).logits, plain)  # zeros change no bit
    offset.offset.normal_()
    changed = lm(IDS, use_cache=False).logits
    for row, ids in zip(changed, IDS, strict=True):
        assert torch.allclose(row, logits_by_hand(lm, ids, offset), atol=1e-3)
    assert (changed - plain).abs().amax((1, 2)).min() > 0.1
    offset.remove()
    assert torch.equal(lm(IDS, use_cache=False).logits, plain)


@pytest.mark.parametrize("kind", ["state", "output"])
@torch.no_grad()
def test_the_offset_acts_at_every_step_over_a_cache(kind: Any) -> None:
    lm = mamba()
    offset = StateOffset(lm, kind)
    offset.offset.normal_()
    whole = lm(IDS, use_cache=False).logits
    out = lm(IDS[:, :4], use_cache=True)
    steps = [out.logits]
    for t in range(4, IDS.shape[1]):
        out = lm(IDS[:, t : t + 1], cache_params=out.cache_params, use_cache=True)
        steps.append(out.logits)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-3)


@pytest.mark.parametrize(("kind", "count"), [("state", L * WIDTH * N), ("output", L * WIDTH)])
def test_training_moves_the_offset_alone_and_the_loss_falls(kind: Any, count: int) -> None:
    lm = mamba()
    offset = StateOffset(lm, kind)
    assert sum(p.numel() for p in offset.parameters()) == count
    assert not any(p.requires_grad for p in lm.parameters())
    optimizer, losses = torch.optim.Adam(offset.parameters(), lr=0.05), list[float]()
    for _ in range(30):
        optimizer.zero_grad()
        logits = lm(IDS[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_models_without_mambas_layers_are_refused() -> None:
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(InputError, match="GPT2LMHeadModel has no layers of Mamba"):
        StateOffset(lm)
    with pytest.raises(InputError, match="kind"):
        StateOffset(mamba(), "both")  # pyright: ignore[reportArgumentType]


def test_a_run_that_leaves_the_output_projection_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of a GPU compute with its weights and do not call it."""
    lm = mamba()
    StateOffset(lm)

    def fused(module: Any, hidden: Tensor, **options: Any) -> Tensor:
        return hidden + 0 * module.in_proj(hidden).sum()

    monkeypatch.setattr(type(lm.backbone.layers[0].mixer), "forward", fused)
    with pytest.raises(InputError, match=r"call eval\(\) of the model"):
        lm(IDS, use_cache=False)
