"""Try every family of language models that Transformers can build from a configuration, and write ``docs/decoders.md``.

Each family is built tiny, with random weights, loaded as a decoder loads it (self-check included), and compared with
the model's own forward pass without a cache: scores of ragged batches, greedy search, beam search. Run it again after
an update of Transformers: ``python docs/decoder_families.py``. ``tests/decoders/test_families.py`` compares the page.
"""

from __future__ import annotations

import sys
import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
)
from transformers.utils import logging as transformers_log

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.cross_attention import cross_attention_model
from mmprefix.decoders.language_model import LanguageModel, Tuning, causal_model
from mmprefix.decoders.text_codec import TextCodec
from mmprefix.decoders.tiny_twin import build_tiny, tiny_config
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.kv_cache.state import Memory, State
from mmprefix.kv_cache.windows import Reaches
from mmprefix.weights.source import Provenance

PAGE = Path(__file__).resolve().parent / "decoders.md"
BEGIN, END = "<!-- begin of the tables -->", "<!-- end of the tables -->"
TOLERANCE = 3e-3  # nats of a text of a few tokens
QUICK = ("gpt2", "mistral", "gemma2", "gpt_oss", "falcon", "cohere2", "granite", "gpt_neo")
_WINDOWS: dict[str, Any] = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 4096}
OPTIONS: dict[
    str, dict[str, Any]
] = {  # where a default configuration is incomplete, or switches windows and scales off
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "granite": {"logits_scaling": 8.0, "residual_multiplier": 0.3, "embedding_multiplier": 2.0},
    "hunyuan_v1_dense": {"head_dim": 64},
    "hunyuan_v1_moe": {"head_dim": 64},
    "ministral": {"head_dim": 64},
    "lfm2": {"full_attn_idxs": [1]},
    **{name: {"sliding_window": 4096} for name in ("mistral", "mixtral", "phi3", "phimoe", "starcoder2")},
    "nemotron": {"num_key_value_heads": 8},
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"), _WINDOWS),
}
LENGTHS = (6, 2, 4)  # positions of the prefixes
PROMPTS = [[31, 32], [], [33]]
TEXTS = [[[41, 42, 43, 44, 45], [51, 52]], [[61, 62, 63]], [[71], [72, 73, 74, 75, 76, 77, 78], [81, 82]]]
FRAMES = (3, 5, 2)
GREEDY, BEAMS = GenerateOptions(max_new_tokens=6), GenerateOptions(max_new_tokens=4, num_beams=3, num_return=2)
NO_STOP = torch.tensor([-1])


@dataclass(frozen=True)
class Row:
    """A family: ``problem`` tells why it is refused ("": it works), ``notes`` what is particular to it."""

    name: str
    problem: str = ""
    notes: str = ""


def build(name: str, mapping: Any) -> Any:
    """Tiny random model of a family. Raises whatever its class raises if its default configuration is incomplete."""
    config = CONFIG_MAPPING[name](**OPTIONS.get(name, {}))
    cls = mapping[type(config)]
    config = tiny_config(config)
    if getattr(config, "is_decoder", None) is False and mapping is MODEL_FOR_CAUSAL_LM_MAPPING:
        config.is_decoder = True
    return build_tiny(cls[0] if isinstance(cls, tuple) else cls, config, seed=1)


class _NoTexts(TextCodec):
    """Codec of a decoder that is run on token ids alone."""

    def __init__(self) -> None:
        self.stop = None


def decoder_over(model: LanguageModel) -> ComposedDecoder:
    """Decoder over a model, checked as when it is loaded. Raises InputError for a model that is refused."""
    return ComposedDecoder(model, _NoTexts(), Provenance(model.name, None, ""), Tuning())


class OwnForward:
    """Log-probabilities of a model by its own forward pass, without a cache, one input at a time."""

    def __init__(self, lm: Any, embeds: list[Tensor], frames: list[Tensor] | None) -> None:
        self.lm, self.embeds, self.frames = lm, embeds, frames

    def __call__(self, b: int, texts: Tensor) -> Tensor:
        """Log-probabilities (W N+1 V) before, within and after texts (W N) of input ``b``."""
        own = self.embeds[b].expand(len(texts), -1, -1)
        inputs = torch.cat([own, self.lm.get_input_embeddings()(texts)], dim=1)
        if self.frames is None:
            out = self.lm(inputs_embeds=inputs, use_cache=False)
        else:
            frames = (self.frames[b][None].expand(len(texts), -1, -1),)
            out = self.lm(decoder_inputs_embeds=inputs, encoder_outputs=frames, use_cache=False)
        return out.logits[:, own.shape[1] - 1 :].float().log_softmax(-1)

    def scores(self, b: int, texts: list[list[int]]) -> list[float]:
        """Log-probabilities of texts of one length."""
        ids = torch.tensor(texts)
        return self(b, ids)[:, :-1].gather(2, ids[:, :, None]).sum((1, 2)).tolist()

    def likeliest(self, b: int, text: list[int]) -> list[int]:
        """Likeliest token behind the tokens before, at each place: the text itself, if it is of a greedy search."""
        return self(b, torch.tensor([text]))[0, :-1].argmax(-1).tolist()

    def beams(self, b: int, steps: int, width: int) -> list[list[int]]:
        """Texts of a beam search without end tokens, the best first."""
        texts, scores = torch.zeros(1, 0, dtype=torch.long), torch.zeros(1)
        for _ in range(steps):
            total = scores[:, None] + self(b, texts)[:, -1]
            scores, best = total.flatten().topk(width)
            parents, tokens = best // total.shape[1], best % total.shape[1]
            texts = torch.cat([texts[parents], tokens[:, None]], dim=1)
        return texts.tolist()


@torch.no_grad()
def compare(decoder: ComposedDecoder, reference: Any) -> None:
    """Assert that scores, greedy and beam search of a ragged batch are those of ``reference``'s own forward pass."""
    model, random = decoder.language_model, torch.Generator().manual_seed(2)
    table = model.embed(torch.arange(90))
    embeds = [torch.einsum("pv,ve->pe", torch.rand(n, 90, generator=random) / 9, table)[None] for n in LENGTHS]
    frames, memory = None, None
    if model.memory_width is not None:
        frames = [torch.randn(n, model.memory_width, generator=random) for n in FRAMES]
        padded = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
        memory = _project(model, padded)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    rows = torch.full((len(LENGTHS), max(LENGTHS), embeds[0].shape[-1]), 5.0)
    rows[mask] = torch.cat([row[0] for row in embeds])
    state = decoder.extend(State((), mask[:, :0], None, memory), rows, mask)
    state = decoder.append_ids(state, PROMPTS)
    prompts = [model.embed(torch.tensor([ids], dtype=torch.long)) for ids in PROMPTS]
    own = OwnForward(reference, [torch.cat(pair, dim=1) for pair in zip(embeds, prompts, strict=True)], frames)
    scores = iter((-decoder.token_loss(state, TEXTS).nll).tolist())
    for b, texts in enumerate(TEXTS):
        for ids in texts:
            assert abs(next(scores) - own.scores(b, [ids])[0]) < TOLERANCE, "score"
    greedy = decoder.search_tokens(state, GREEDY, NO_STOP)
    beams = decoder.search_tokens(state, BEAMS, NO_STOP)
    for b in range(len(TEXTS)):
        text = greedy[b][0][0]
        assert text == own.likeliest(b, text), "greedy search"
        assert len(text) == GREEDY.max_new_tokens
        texts = [ids for ids, _ in beams[b]]
        assert texts == own.beams(b, BEAMS.max_new_tokens, BEAMS.num_beams)[:2], "beam search"
        for (ids, score), expected in zip(beams[b], own.scores(b, texts), strict=True):
            assert abs(score * len(ids) - expected) < TOLERANCE, "beam score"


def _project(model: Any, padded: Tensor) -> Memory:
    return model.project(padded, torch.arange(max(FRAMES)) < torch.tensor(FRAMES)[:, None])


def try_family(name: str, mapping: Any, make: Any) -> Row | None:
    """Row of a family; None if no tiny model of it can be built from its default configuration."""
    try:
        lm = build(name, mapping)
        lm(**_any_input(lm))
    except Exception:  # classes raise what they like
        return None
    reference = deepcopy(lm)
    try:
        decoder = decoder_over(make(lm, name))
    except InputError as error:
        return Row(name, str(error).split("; ")[0].split(f"{lm.config.model_type!r} model ")[1].split(" [")[0])
    compare(decoder, reference)
    reaches = decoder.language_model.reaches or Reaches()
    lengths = {reach for reach in (reaches.every, *reaches.by_kind.values()) if reach.length}
    notes = ["chunks" if reach.chunked else "sliding window" for reach in lengths]
    notes += ["logits by its own head"] if decoder.language_model.whole_head is not None else []
    notes += ["no deep prefix"] if not decoder.heads else []
    return Row(name, notes=", ".join(notes))


def _any_input(lm: Any) -> dict[str, Any]:
    """Input for a first run, which tells whether the tiny model is whole."""
    ids = torch.tensor([[41, 42, 43]])
    if not lm.config.is_encoder_decoder:
        return {"input_ids": ids, "use_cache": False}
    frames = (torch.ones(1, 2, int(lm.config.get_text_config().d_model)),)
    return {"encoder_outputs": frames, "decoder_input_ids": ids, "use_cache": False}


def causal_row(name: str) -> Row | None:
    """Row of a causal family; see ``try_family``."""
    return try_family(name, MODEL_FOR_CAUSAL_LM_MAPPING, causal_model)


def cross_row(name: str) -> Row | None:
    """Row of an encoder-decoder family; see ``try_family``."""
    mapping = MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING if name == "whisper" else MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    return try_family(name, mapping, cross_attention_model)


def causal_names() -> list[str]:
    """Causal families of the installed Transformers."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def cross_names() -> list[str]:
    """Encoder-decoder families of the installed Transformers, and Whisper."""
    names = sorted({"whisper", *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES} - {"encoder-decoder"})
    return [name for name in names if CONFIG_MAPPING[name]().is_encoder_decoder]


def tables(names: list[str], row: Any) -> str:
    """Tables of the families that work, and of those that are refused; those that could not be built in one line."""
    rows = {name: row(name) for name in names}
    good = [f"| {r.name} | {r.notes} |" for r in rows.values() if r is not None and not r.problem]
    bad = [f"| {r.name} | {r.problem} |" for r in rows.values() if r is not None and r.problem]
    untried = ", ".join(name for name, r in rows.items() if r is None)
    parts = [f"Work ({len(good)}):", "", "| model type | notes |", "|---|---|", *good, ""]
    parts += [f"Refused when loaded ({len(bad)}):", "", "| model type | why |", "|---|---|", *bad, ""]
    return "\n".join([*parts, f"Not tried, for a default configuration gives no small model: {untried or 'none'}."])


def page() -> str:
    """Text between the marks of the page."""
    causal, cross = tables(causal_names(), causal_row), tables(cross_names(), cross_row)
    return f"{BEGIN}\n\n## CausalDecoder\n\n{causal}\n\n## CrossDecoder\n\n{cross}\n\n{END}"


def main() -> None:
    """Write the tables into the page."""
    warnings.filterwarnings("ignore")
    transformers_log.set_verbosity_error()
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + page() + rest.split(END)[1], encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")


if __name__ == "__main__":
    main()
