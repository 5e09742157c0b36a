"""Train a small GPT-2 and its tokenizer on lines of text alone: a decoder where none can be downloaded.

The model is `GPT2LMHeadModel` trained by plain language modelling: random windows of one long stream in which every
text is followed by `<|endoftext|>` (decoder_tokens.py). Texts with one meaning (the captions of one picture) stand side
by side in the stream, and a window begins with the first of them, so the decoder learns to use the text before; that is
what a prefix will ask of it.

    python recipes/pretrain/decoder.py captions.jsonl --folder runs/decoder --steps 3000
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from mmprefix.recipes.pretrain.decoder_tokens import (
    Text,
    TokenWindows,
    end_id,
    read_texts,
    stream,
    train_tokenizer,
    weights,
)
from mmprefix.recipes.pretrain.loop import JoinedOptimizer, LogLines, every_hundred, train

log = logging.getLogger("pretrain_decoder")


@dataclass(frozen=True)
class DecoderPlan:
    """Sizes of a decoder, and its training settings.

    The learning rate warms up to ``lr`` over the first twentieth of ``steps`` and falls along a cosine. A share
    ``held_back`` of the texts is never trained on and gives the loss that is reported.
    """

    layers: int = 4
    heads: int = 4
    width: int = 256
    vocab_size: int = 2048
    positions: int = 128
    steps: int = 3000
    batch_tokens: int = 4096
    lr: float = 2e-3
    dropout: float = 0.0
    held_back: float = 0.02
    seed: int = 0
    whole: bool = False  # windows hold whole groups of texts, as many as there is room for, none without its end
    answers: str | None = None  # mark before each answer: answers weigh 1 in the loss, all other tokens ``rest``
    rest: float = 1.0
    muon: bool = False  # the layers' matrices and the table of positions are trained by Muon, not AdamW


def train_decoder(texts: Iterable[Text], folder: Path, plan: DecoderPlan) -> dict[str, float]:
    """Train on ``texts`` and write tokenizer and model (float16 safetensors) to ``folder``.

    Returns ``{"loss": nats a token, "perplexity": ..., "tokens": of the training stream, "parameters", "seconds"}``.
    Runs on a GPU when there is one. Raises ValueError when there is too little text for one window.
    """
    began = time.monotonic()
    tokenizer, windows, val = _windows(texts, plan)
    torch.manual_seed(plan.seed)
    model = GPT2LMHeadModel(_config(tokenizer, plan))
    _fit(model, windows, plan)
    loss = held_back_loss(model, val)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.half().save_pretrained(folder)
    parameters = sum(value.numel() for value in model.parameters())
    seconds = time.monotonic() - began
    log.info("%s: %d parameters, held-back loss %.3f, %.0f s", folder, parameters, loss, seconds)
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "tokens": len(windows.ids),
        "parameters": parameters,
        "seconds": seconds,
    }


def _windows(texts: Iterable[Text], plan: DecoderPlan) -> tuple[PreTrainedTokenizerFast, TokenWindows, TokenWindows]:
    """Tokenizer, windows to train on, and windows of the texts held back (without enough of them, the former)."""
    groups = [[text] if isinstance(text, str) else list(text) for text in texts]
    random.Random(plan.seed).shuffle(groups)
    aside = max(1, round(plan.held_back * len(groups))) if plan.held_back else 0
    tokenizer = train_tokenizer((text for group in groups[aside:] for text in group), plan.vocab_size)

    def cut(part: Sequence[Sequence[str]]) -> TokenWindows:
        ids, starts = stream(part, tokenizer, plan.positions if plan.whole else None)
        weight = weights(ids, tokenizer, plan.answers, plan.rest)
        return TokenWindows(ids, weight, starts[starts <= len(ids) - plan.positions], plan.positions)

    windows, val = cut(groups[aside:]), cut(groups[:aside] or groups)
    if len(windows.ids) < plan.positions + (not plan.whole):
        raise ValueError(f"texts hold {len(windows.ids)} tokens, fewer than one window of {plan.positions} positions")
    return tokenizer, windows, val if len(val.ids) > plan.positions else windows


def _config(tokenizer: PreTrainedTokenizerFast, plan: DecoderPlan) -> GPT2Config:
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=plan.positions,
        n_embd=plan.width,
        n_layer=plan.layers,
        n_head=plan.heads,
        activation_function="gelu_pytorch_tanh",  # the same function as "gelu_new", in one pass
        resid_pdrop=plan.dropout,
        embd_pdrop=plan.dropout,
        attn_pdrop=plan.dropout,
        bos_token_id=end_id(tokenizer),
        eos_token_id=end_id(tokenizer),
    )


def _fit(model: GPT2LMHeadModel, windows: TokenWindows, plan: DecoderPlan) -> None:
    rows = max(1, plan.batch_tokens // plan.positions)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        picks = torch.Generator().manual_seed(plan.seed)
        while True:
            yield windows.at(windows.starts[torch.randint(len(windows.starts), (rows,), generator=picks)])

    train(
        model,
        lambda batch: _loss(model, *batch),
        batches(),
        steps=plan.steps,
        schedule=torch.optim.lr_scheduler.LambdaLR(_optimizer(model, plan), lambda step: _pace(step, plan.steps)),
        max_norm=1.0,
        callbacks=[LogLines(log, every_hundred(plan.steps))],
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
    )


def _optimizer(model: GPT2LMHeadModel, plan: DecoderPlan) -> torch.optim.Optimizer:
    """AdamW; beside it Muon (https://kellerjordan.github.io/posts/muon/) for all matrices but the table of tokens."""
    tokens = model.transformer.wte.weight
    plain = [value for value in model.parameters() if value.dim() < 2]
    turned = [value for value in model.parameters() if plan.muon and value.dim() == 2 and value is not tokens]
    chosen = {id(value) for value in (*plain, *turned)}
    decayed = [value for value in model.parameters() if id(value) not in chosen]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.95))
    if not turned:
        return adamw
    muon = torch.optim.Muon(turned, lr=plan.lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    return JoinedOptimizer([adamw, muon])


def _loss(model: GPT2LMHeadModel, window: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of the cross-entropy of each token of ``window`` (B N) after the first; ``weight`` (B N)."""
    window, weight = window.to(model.device), weight[:, 1:].flatten().to(model.device)
    logits = model(input_ids=window[:, :-1]).logits  # (B N-1 V)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten(), reduction="none")
    return (losses * weight).sum() / weight.sum().clamp(min=1e-6)


def _pace(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.no_grad()
def held_back_loss(model: GPT2LMHeadModel, windows: TokenWindows, most: int = 256) -> float:
    """Mean loss in nats a token over the first ``most`` of ``windows``."""
    parts = windows.starts[:most].split(32)
    losses = [_loss(model, *windows.at(part)).item() * len(part) for part in parts]
    return sum(losses) / sum(map(len, parts))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="text files (one text a line) or .jsonl manifests")
    parser.add_argument("--folder", type=Path, required=True, help="where the model and its tokenizer are written")
    parser.add_argument("--split", help="train only on manifest rows of this split")
    parser.add_argument("--layers", type=int, default=DecoderPlan.layers)
    parser.add_argument("--heads", type=int, default=DecoderPlan.heads)
    parser.add_argument("--width", type=int, default=DecoderPlan.width)
    parser.add_argument("--vocab-size", type=int, default=DecoderPlan.vocab_size)
    parser.add_argument(
        "--positions", type=int, default=DecoderPlan.positions, help="longest prefix + caption, in tokens"
    )
    parser.add_argument("--steps", type=int, default=DecoderPlan.steps)
    parser.add_argument("--batch-tokens", type=int, default=DecoderPlan.batch_tokens, help="tokens a step")
    parser.add_argument("--lr", type=float, default=DecoderPlan.lr, help="highest learning rate")
    parser.add_argument("--dropout", type=float, default=DecoderPlan.dropout)
    parser.add_argument(
        "--held-back", type=float, default=DecoderPlan.held_back, help="share of texts kept for the reported loss"
    )
    parser.add_argument("--seed", type=int, default=DecoderPlan.seed)
    options = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    texts = read_texts(options.pop("files"), options.pop("split"))
    folder = options.pop("folder")
    print(json.dumps(train_decoder(texts, folder, DecoderPlan(**options))))


if __name__ == "__main__":
    main()
