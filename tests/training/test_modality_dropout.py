"""Modality dropout: each input is hidden with the given probability, never all of a row; refused values."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.encoders.whisper import Whisper
from mmprefix.errors import InputError
from mmprefix.mappers.learned import Learned
from mmprefix.model import Branch
from mmprefix.training.modality_dropout import drop_modalities
from mmprefix.training.task import PrefixTask
from mmprefix.types import Batch, Features, Media
from tiny.captioning_system import quietly
from tiny.speech_system import SpeechSystem

pytestmark = quietly


@pytest.fixture(scope="module")
def gpt2(spoken: SpeechSystem) -> CausalDecoder:
    return CausalDecoder(spoken.path("decoder"))


@pytest.fixture(scope="module")
def whisper(spoken: SpeechSystem) -> Whisper:
    return Whisper(spoken.path("whisper"))


@pytest.fixture(scope="module")
def whisper_decoder(spoken: SpeechSystem) -> CrossDecoder:
    return CrossDecoder(spoken.path("whisper"))


def batch_of(count: int, contexts: list[str] | None = None) -> Batch:
    """Batch of ``count`` inputs with a sound and signals, all of them zero."""
    inputs: dict[str, Media | Features] = {
        "audio": Media(torch.zeros(count, 4), torch.full((count,), 4)),
        "signals": Features(torch.zeros(count, 0, 0), torch.zeros(count, 0).bool(), torch.zeros(count, 2)),
    }
    names = [str(n) for n in range(count)]
    return Batch(inputs, [""] * count, [["a"]] * count, contexts or [""] * count, names)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_inputs_are_hidden_with_the_given_probability_and_never_all(probability: float) -> None:
    count, three = 100000, 3
    torch.manual_seed(0)
    dropped = drop_modalities(batch_of(count, ["said"] * count), probability, text=True)
    gone = torch.stack(
        [dropped.absent["audio"], dropped.absent["signals"], torch.tensor([not c for c in dropped.contexts])]
    )
    assert not bool(gone.all(0).any())
    # A row that would lose all three keeps one of them, drawn uniformly.
    expected = probability - probability**three / three
    error = (expected * (1 - expected) / count) ** 0.5
    for absent in gone:
        assert float(absent.float().mean()) == pytest.approx(expected, abs=4 * error)
    pair = float((gone[0] & gone[1]).float().mean())
    assert pair == pytest.approx(probability**2 - probability**3 * 2 / 3, abs=0.01)


def test_a_row_keeps_one_of_the_inputs_that_it_has() -> None:
    torch.manual_seed(0)
    contexts = ["said", ""] * 500
    dropped = drop_modalities(batch_of(1000, contexts), 0.9, text=True)
    gone = dropped.absent["audio"] & dropped.absent["signals"]
    assert not bool(gone[1::2].any())  # without a context, one of the inputs is left
    assert bool(gone[::2].any())
    assert all(dropped.contexts[row] for row in gone.nonzero()[:, 0].tolist())
    assert set(dropped.contexts[1::2]) == {""}
    kept = drop_modalities(batch_of(1000, contexts), 0.9, text=False)
    assert kept.contexts == contexts
    assert not bool((kept.absent["audio"] & kept.absent["signals"]).any())


def test_the_draw_follows_torchs_seed_and_leaves_the_batch_unchanged() -> None:
    whole = batch_of(50, ["said"] * 50)
    torch.manual_seed(3)
    first = drop_modalities(whole, 0.5, text=True)
    torch.manual_seed(3)
    again = drop_modalities(whole, 0.5, text=True)
    assert all(torch.equal(first.absent[name], again.absent[name]) for name in ("audio", "signals"))
    assert first.contexts == again.contexts
    assert not torch.equal(first.absent["audio"], drop_modalities(whole, 0.5, text=True).absent["audio"])
    assert first.inputs is whole.inputs
    assert whole.contexts == ["said"] * 50
    assert not whole.absent
    nothing = drop_modalities(whole, 0.0, text=True)
    assert not any(bool(rows.any()) for rows in nothing.absent.values())
    assert nothing.contexts == whole.contexts


def test_rows_with_text_only_or_nothing_are_unchanged() -> None:
    text = Batch({}, ["", ""], [["a"], ["b"]], ["said", ""], ["0", "1"])
    torch.manual_seed(0)
    for _ in range(20):
        assert drop_modalities(text, 0.9, text=True).contexts == ["said", ""]
    assert drop_modalities(text, 0.9, text=False) is text


def test_a_dropout_that_is_no_probability_is_refused(gpt2: CausalDecoder) -> None:
    with pytest.raises(InputError, match=r"model.modality_dropout 1\.0: give a probability"):
        PrefixTask({}, gpt2, prefix=partial(Learned, length=2), modality_dropout=1.0)


def test_a_decoder_that_needs_frames_cannot_do_without_them(whisper_decoder: CrossDecoder, whisper: Whisper) -> None:
    with pytest.raises(InputError, match=r"model.modality_dropout: this decoder needs the frames"):
        PrefixTask({"audio": Branch(whisper)}, whisper_decoder, modality_dropout=0.2)
