"""BiTA: texts of greedy search whatever is drafted, masks that see what they may, drafts that are learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.generation.drafting import Drafter
from mmprefix.generation.drafting.draft_mask import draft_mask, draft_offsets
from mmprefix.generation.options import GenerateOptions
from mmprefix.training.methods.bita import greedy_texts, train_drafter
from mmprefix.types import Prefix
from tiny.decoders import save_decoder

OPTIONS = GenerateOptions(max_new_tokens=14)
PROMPTS = [
    f"{word} {n}" for n in range(5) for word in ("a dog", "the cat runs over", "some rain", "a bell rings", "on")
]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(save_decoder(tmp_path_factory.mktemp(request.param), request.param, sharp=3.0)).eval()


def drafter(decoder: CausalDecoder, masks: int = 3) -> Drafter:
    torch.manual_seed(0)
    return Drafter(decoder.width, decoder.layers, decoder.heads, decoder.head_width, masks=masks, length=4)


def test_texts_are_those_of_greedy_search_whatever_is_drafted(decoder: CausalDecoder) -> None:
    texts = greedy_texts(decoder, PROMPTS, OPTIONS)
    for masks in (1, 3):
        written = [drafter(decoder, masks).write(decoder, state, OPTIONS) for state, _ in texts]
        assert [one.ids for one in written] == [ids for _, ids in texts]
        assert all(one.passes <= len(one.ids) for one in written)


def test_a_drafter_learns_to_save_passes() -> None:
    """One text of the embedded decoder by heart; the decoder keeps its bits."""
    decoder = CausalDecoder("mmprefix:world/frozen/decoder").eval()
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    (text,) = greedy_texts(decoder, [" large red circle small blue square row\n"], OPTIONS)
    each = drafter(decoder)
    losses = train_drafter(each, decoder, [text], steps=80, groups=4, batch=1)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    written = each.write(decoder, text[0], OPTIONS)
    assert written.ids == text[1]
    assert written.passes < len(written.ids)
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.state_dict().items())


def test_text_and_masks_see_nothing_that_is_not_theirs(decoder: CausalDecoder) -> None:
    (state, ids), *_ = greedy_texts(decoder, PROMPTS[:1], OPTIONS)
    each = drafter(decoder, masks=2)
    layers = each.layers(state)
    with torch.no_grad():
        hidden, _ = each.run(decoder, state, layers, ids, groups=[0, 3])
        plain = decoder.append_ids(state, [ids])
        assert plain.last_hidden is not None
        best = decoder.logits(hidden[: len(ids)]).argmax(-1).tolist()
        assert torch.allclose(hidden[len(ids) - 1], plain.last_hidden[0], atol=1e-3)  # the prompt is not seen
        assert best[: len(ids) - 1] == ids[1:]
        shorter, _ = each.run(decoder, state, layers, ids[:4], groups=[3])
    assert torch.allclose(hidden[-2:], shorter[-2:], atol=1e-3)  # a mask sees no later token and no other group


def test_masks_see_the_prompt_their_text_and_their_group() -> None:
    assert draft_offsets(2, [0, 1], 2).tolist() == [[0, 1, 1, 2, 2, 3]]
    rows = draft_mask(1, 2, [0, 1], prompt=4, masks=2)[0].int().tolist()
    prompt, none = [1] * 4, [0] * 4
    assert rows == [
        [*none, 1, 1, 0, 0, 0, 0, 0],
        [*none, 1, 1, 1, 0, 0, 0, 0],
        [*prompt, 1, 1, 0, 1, 0, 0, 0],
        [*prompt, 1, 1, 0, 1, 1, 0, 0],
        [*prompt, 1, 1, 1, 0, 0, 1, 0],
        [*prompt, 1, 1, 1, 0, 0, 1, 1],
    ]


def test_what_is_not_greedy_is_refused(tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path))
    each = drafter(decoder)
    state = decoder.append(decoder.prefill(Prefix.empty(2, decoder.width)), ["a", "b"])
    with pytest.raises(InputError, match="one text at a time"):
        each.write(decoder, state, OPTIONS)
    with pytest.raises(InputError, match="greedy search only"):
        each.write(decoder, state.select(torch.tensor([0])), GenerateOptions(num_beams=2))
    with pytest.raises(InputError, match="longer than two"):
        train_drafter(each, decoder, [(state, [1])])
