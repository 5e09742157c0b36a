"""Self-check of decoders when they are loaded: models that would be silently wrong are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from mmprefix.decoders import language_model as language_models
from mmprefix.decoders import self_check
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.errors import InputError
from mmprefix.kv_cache.windows import Reaches
from mmprefix.types import DeepPrefix
from mmprefix.weights import dry_run
from tiny import whisper as tiny_whisper
from tiny.decoders import make_tokenizer, ragged_prefix, save_decoder

WORDS = make_tokenizer()
SIZE: dict[str, Any] = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE: dict[str, Any] = {**SIZE, "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 128}
PLAIN: dict[str, Any] = {"vocab_size": len(WORDS)}
REFUSED: dict[str, tuple[Any, str]] = {
    "mpt": (hf.MptConfig(**PLAIN, d_model=32, n_layers=2, n_heads=4), "takes no position ids"),
    "bloom": (hf.BloomConfig(**PLAIN, hidden_size=32, n_layer=2, n_head=4), "takes no position ids"),
    "mamba": (hf.MambaConfig(**PLAIN, hidden_size=32, num_hidden_layers=2, state_size=4), "keeps no key-value cache"),
    "rwkv": (
        hf.RwkvConfig(**PLAIN, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
        "keeps no key-value cache",
    ),
    "openai-gpt": (hf.OpenAIGPTConfig(**PLAIN, n_embd=32, n_layer=2, n_head=4), "keeps no key-value cache"),
    "xlnet": (hf.XLNetConfig(**PLAIN, d_model=32, n_layer=2, n_head=4, d_inner=64), "keeps no key-value cache"),
    "lfm2": (hf.Lfm2Config(**MORE, full_attn_idxs=[1]), r"layers without keys and values of all positions \(conv\)"),
    "bert": (hf.BertConfig(**SIZE, intermediate_size=64), "reads both ways, .* is_decoder: false"),
    "bart": (
        hf.BartConfig(
            **PLAIN, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, encoder_layers=1,
            encoder_attention_heads=4, encoder_ffn_dim=64,
        ),
        "takes no position ids",
    ),
    "falcon": (
        hf.FalconConfig(**SIZE, alibi=True, new_decoder_architecture=False, multi_query=False),
        r"does not give its own scores over a shared cache \[",
    ),
}  # fmt: skip


def save(config: Any, folder: Path) -> str:
    torch.manual_seed(0)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    WORDS.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_would_be_wrong_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    config, reason = REFUSED[kind]
    folder = save(config, tmp_path)
    with pytest.raises(InputError, match=rf"decoder '{folder}': a '{kind}' model .*{reason}.*; GPT-2, OPT") as error:
        CausalDecoder(folder)
    assert "\n" not in str(error.value)


def test_a_window_that_is_not_obeyed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_decoder(tmp_path, "mistral")
    monkeypatch.setattr(self_check, "_verdicts", {})
    assert CausalDecoder(folder).heads == 2
    monkeypatch.setattr(self_check, "_verdicts", {})
    monkeypatch.setattr(language_models, "reaches_of", lambda config: Reaches())
    with pytest.raises(InputError, match="'mistral' model does not give its own scores"):
        CausalDecoder(folder)


def test_a_wrong_position_and_a_wrong_head_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_decoder(tmp_path, "gpt2")
    model = language_models.LanguageModel
    for name, wrong in {
        "position_ids": lambda self, state, offset: state.mask.shape[1] + offset,
        "logits": lambda self, hidden: 2 * self.head(hidden),
        "embed": lambda self, ids: 2 * self.lm.get_input_embeddings()(ids),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(self_check, "_verdicts", {})
            patch.setattr(model, name, wrong)
            patch.setattr(model, "output_matrix", lambda self: None)
            with pytest.raises(InputError, match="a score would depend on the batch"):
                CausalDecoder(folder)


def test_a_wrong_memory_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_whisper.save_whisper(tmp_path)
    monkeypatch.setattr(self_check, "_verdicts", {})
    from mmprefix.decoders import cross_attention

    monkeypatch.setattr(cross_attention, "_mask_memory", lambda module, args, kwargs: (args, kwargs))
    with pytest.raises(InputError, match="a score would depend on the batch"):
        CrossDecoder(folder)


def test_a_configuration_is_checked_once_and_the_seed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_decoder(tmp_path, "llama")
    checks: list[object] = []
    examine = self_check.examine
    monkeypatch.setattr(self_check, "_verdicts", {})
    monkeypatch.setattr(self_check, "examine", lambda *args: [checks.append(args), examine(*args)][1])
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    CausalDecoder(folder)
    assert torch.equal(torch.randn(3), expected)
    CausalDecoder(folder, dtype="bfloat16")
    assert len(checks) == 1
    CausalDecoder(save_decoder(tmp_path / "other", "gpt2"))
    assert len(checks) == 2


def test_a_model_without_a_twin_is_checked_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "build_twin", lambda lm: (_ for _ in ()).throw(ValueError("cannot be small")))
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setattr(self_check, "_verdicts", {})
        assert CausalDecoder(save_decoder(tmp_path / "good", "qwen"), dtype=dtype).heads == 2
    monkeypatch.setattr(self_check, "_verdicts", {})
    with pytest.raises(InputError, match="'mpt' model takes no position ids"):
        CausalDecoder(save(REFUSED["mpt"][0], tmp_path / "bad"))


def test_a_dry_run_checks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "examine", lambda *args: pytest.fail("checked"))
    monkeypatch.setattr(self_check, "_verdicts", {})
    with dry_run.without_weights():
        assert next(CausalDecoder(save_decoder(tmp_path)).parameters()).is_meta


@pytest.mark.parametrize("config", [
    hf.FalconConfig(**SIZE, alibi=False, new_decoder_architecture=False, multi_query=True),
    hf.FalconConfig(**SIZE, alibi=False, new_decoder_architecture=False, multi_query=False),
    hf.FalconConfig(**SIZE, alibi=False, new_decoder_architecture=True, num_kv_heads=2),
    hf.GPTBigCodeConfig(vocab_size=len(WORDS), n_embd=32, n_layer=2, n_head=4, multi_query=True),
    hf.GPTBigCodeConfig(vocab_size=len(WORDS), n_embd=32, n_layer=2, n_head=4, multi_query=False),
], ids=["falcon-1", "falcon-4", "falcon-2", "bigcode-1", "bigcode-4"])  # fmt: skip
def test_a_deep_prefix_fits_shared_heads(config: Any, tmp_path: Path) -> None:
    decoder = CausalDecoder(save(config, tmp_path))
    soft = decoder.prefill(ragged_prefix(decoder, [3, 2]))
    keys, values = (torch.stack([layer[i] for layer in soft.cache]) for i in (0, 1))
    assert keys.shape == values.shape == (decoder.layers, 2, decoder.heads, 3, decoder.head_width)
    deep = decoder.prefill(DeepPrefix(keys, values, soft.mask))
    texts = [["a dog barks"], ["rain"]]
    one, other = (decoder.score(state, ["the", "a"], texts) for state in (soft, deep))
    assert torch.allclose(torch.tensor(one), torch.tensor(other), atol=1e-4)


def test_keys_and_values_of_other_widths_take_no_deep_prefix(tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path, "deepseek"))
    assert (decoder.heads, decoder.head_width) == (0, 0)
    state = decoder.prefill(ragged_prefix(decoder, [3, 2]))
    assert len({keys.shape[-1] == values.shape[-1] for keys, values in state.cache}) == 1
    with pytest.raises(InputError, match="takes no deep prefix"):
        decoder.prefill(DeepPrefix(torch.zeros(2, 1, 4, 3, 16), torch.zeros(2, 1, 4, 3, 16), torch.ones(1, 3).bool()))


def test_patches_of_a_model_do_not_reach_the_reference(tmp_path: Path) -> None:
    """GPT-Neo's windows are switched off in the model: a reference with that patch would agree with a wrong mask."""
    config = hf.GPTNeoConfig(
        vocab_size=len(WORDS), hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=6, max_position_embeddings=128,
    )  # fmt: skip
    folder = save(config, tmp_path)
    decoder, plain = CausalDecoder(folder), hf.AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    prefix = ragged_prefix(decoder, [7, 4])
    text = "a dog barks loudly and a bell rings"
    scores = decoder.score(decoder.prefill(prefix), ["", ""], [["the cat", text], [text]])
    ids = decoder.codec.target_ids("", text)
    for b, score in ((0, scores[0][1]), (1, scores[1][0])):
        rows = prefix.embeds[b][prefix.mask[b]]
        inputs = torch.cat([rows, plain.get_input_embeddings()(torch.tensor(ids))])[None]
        log_probs = nn.functional.log_softmax(plain(inputs_embeds=inputs).logits[0, len(rows) - 1 : -1], -1)
        assert score == pytest.approx(float(log_probs.gather(1, torch.tensor(ids)[:, None]).sum()), abs=1e-3)
