"""Trains a small GPT-2 and its tokenizer from nothing but lines of text: a decoder where none can be downloaded.

The text is a byte-level BPE as in GPT-2 (Radford et al., 2019); the model is `GPT2LMHeadModel` trained by plain
language modelling: random windows of one long stream in which every text is followed by `<|endoftext|>`. Texts
that say the same thing (the captions of one picture) stand side by side in the stream, and a window begins with the
first of them, so the decoder learns to read what came before; that is what a prefix will ask of it.

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
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"
log = logging.getLogger("pretrain_decoder")

Text = str | Sequence[str]
"""One text, or several texts that say the same thing."""


def train_decoder(
    texts: Iterable[Text],
    folder: Path,
    *,
    layers: int = 4,
    heads: int = 4,
    width: int = 256,
    vocab_size: int = 2048,
    positions: int = 128,
    steps: int = 3000,
    batch_tokens: int = 4096,
    lr: float = 2e-3,
    dropout: float = 0.0,
    held_back: float = 0.02,
    seed: int = 0,
    whole: bool = False,
    answers: str | None = None,
    rest: float = 1.0,
    muon: bool = False,
) -> dict[str, float]:
    """Trains on ``texts`` and writes tokenizer and model (float16 safetensors) to ``folder``.

    ``whole`` windows hold whole groups of texts, as many as there is room for, and no beginning without its end.
    ``answers`` is what an answer stands behind in its text: answers then weigh 1 in the loss, all the rest ``rest``.
    ``muon`` trains the matrices of the layers and the table of positions by Muon, not AdamW.

    The learning rate warms up over the first twentieth of ``steps`` and falls along a cosine. A share
    ``held_back`` of the texts is never trained on and gives the loss that is returned:
    ``{"loss": nats a token, "perplexity": ..., "tokens": of the training stream, "parameters", "seconds"}``.
    Runs on a GPU when there is one. Raises ValueError when there is too little text for one window.
    """
    began = time.monotonic()
    groups = [[text] if isinstance(text, str) else list(text) for text in texts]
    random.Random(seed).shuffle(groups)
    aside = max(1, round(held_back * len(groups))) if held_back else 0
    tokenizer = train_tokenizer((text for group in groups[aside:] for text in group), vocab_size)
    row = positions if whole else None
    train, starts = stream(groups[aside:], tokenizer, row)
    val, val_starts = stream(groups[:aside] or groups, tokenizer, row)
    if len(train) < positions + (not whole):
        raise ValueError(f"texts hold {len(train)} tokens, fewer than one window of {positions} positions")
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(_config(tokenizer, layers, heads, width, positions, dropout))
    weigh = partial(weights, tokenizer=tokenizer, answers=answers, rest=rest)
    rows = max(1, batch_tokens // positions)
    optimisers = _optimisers(model, lr, muon)
    _fit(model, optimisers, train, weigh(train), starts, positions=positions, steps=steps, rows=rows, seed=seed)
    if len(val) <= positions:
        val, val_starts = train, starts
    loss = held_back_loss(model, val, val_starts, positions, weigh(val))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.half().save_pretrained(folder)
    parameters = sum(value.numel() for value in model.parameters())
    seconds = time.monotonic() - began
    log.info("%s: %d parameters, held-back loss %.3f, %.0f s", folder, parameters, loss, seconds)
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "tokens": len(train),
        "parameters": parameters,
        "seconds": seconds,
    }


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most ``vocab_size`` entries; any text can be written with it. At least 257 are needed."""
    if vocab_size < 257:
        raise ValueError(f"vocab_size {vocab_size}: 256 bytes and {END} already take 257")
    tokenizer: Any = Tokenizer(models.BPE())  # whose stubs know its parts as read-only
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END)


def stream(
    groups: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerFast, row: int | None = None
) -> tuple[Tensor, Tensor]:
    """All texts in one line of token ids, an end token before and after each, and where in it windows may begin.

    They begin with a group; or, where ``row`` is given, with each row of so many tokens. A row holds whole groups (one
    that is longer than a row is cut) and is filled up with end tokens.
    """
    end = end_id(tokenizer)
    ids, starts = [end], []
    for group in groups:
        lines = [[*line, end] for line in tokenizer(list(group))["input_ids"]] if group else []
        tokens = [token for line in lines for token in line]
        if row is None:
            starts.append(len(ids) - 1)
        else:
            tokens = tokens[: row - 1]
            used = len(ids) % row or row
            if used + len(tokens) > row:
                ids += [end] * (row - used + 1)
        ids += tokens
    if row is not None:
        ids += [end] * (-len(ids) % row)
        starts = range(0, len(ids), row)
    return torch.tensor(ids), torch.tensor(starts)


def weights(ids: Tensor, tokenizer: PreTrainedTokenizerFast, answers: str | None, rest: float) -> Tensor:
    """What each token of a stream (N,) weighs in the loss: 1, and ``rest`` outside of what stands behind ``answers``.

    An answer lasts to the end of its text. An end token that follows another only fills a row and weighs nothing.
    """
    end = ids == end_id(tokenizer)
    after_end = torch.cat([end.new_ones(1), end[:-1]])
    weight = torch.ones(len(ids))
    if answers is not None:
        mark = torch.tensor(tokenizer(answers)["input_ids"])
        place = torch.arange(len(ids))
        marked = torch.zeros(len(ids), dtype=torch.bool)
        marked[len(mark) - 1 :] = (ids.unfold(0, len(mark), 1) == mark).all(1)
        last_mark = torch.where(marked, place, -1).cummax(0).values
        last_end = torch.where(after_end, place - 1, -1).cummax(0).values
        weight[(last_mark <= last_end) | marked] = rest
    weight[end & after_end] = 0
    return weight


def end_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of the end token, which also stands before the first text."""
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    return end


def _config(
    tokenizer: PreTrainedTokenizerFast, layers: int, heads: int, width: int, positions: int, dropout: float
) -> GPT2Config:
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu_pytorch_tanh",  # the same function as "gelu_new", in one pass
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=end_id(tokenizer),
        eos_token_id=end_id(tokenizer),
    )


def _fit(
    model: GPT2LMHeadModel,
    optimisers: Sequence[torch.optim.Optimizer],
    ids: Tensor,
    weight: Tensor,
    starts: Tensor,
    *,
    positions: int,
    steps: int,
    rows: int,
    seed: int,
) -> None:
    starts = starts[starts <= len(ids) - positions]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cast(nn.Module, model).to(device).train()  # Transformers wraps ``to`` and loses its types
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _pace(step, steps)) for optimiser in optimisers
    ]
    picks = torch.Generator().manual_seed(seed)
    began = time.monotonic()
    for step in range(steps):
        first = starts[torch.randint(len(starts), (rows, 1), generator=picks)]
        places = first + torch.arange(positions)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = _loss(model, ids[places].to(device), weight[places].to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
        if step % 100 == 0 or step == steps - 1:
            log.info("step %5d/%d  loss %.3f  %.0f s", step, steps, loss.item(), time.monotonic() - began)
    cast(nn.Module, model).cpu().eval()


def _optimisers(model: GPT2LMHeadModel, lr: float, muon: bool) -> list[torch.optim.Optimizer]:
    """AdamW; beside it Muon (https://kellerjordan.github.io/posts/muon/) for all matrices but the table of tokens."""
    tokens = model.transformer.wte.weight
    plain = [value for value in model.parameters() if value.dim() < 2]
    turned = [value for value in model.parameters() if muon and value.dim() == 2 and value is not tokens]
    chosen = {id(value) for value in (*plain, *turned)}
    decayed = [value for value in model.parameters() if id(value) not in chosen]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))]
    if turned:
        found.append(torch.optim.Muon(turned, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    return found


def _loss(model: GPT2LMHeadModel, window: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of each token of ``window`` (B N) after the first, given those before it: the ``weight``ed mean."""
    logits = model(input_ids=window[:, :-1]).logits  # (B N-1 V)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten(), reduction="none")
    weight = weight[:, 1:].flatten()
    return (losses * weight).sum() / weight.sum().clamp(min=1e-6)


def _pace(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.no_grad()
def held_back_loss(
    model: GPT2LMHeadModel, ids: Tensor, starts: Tensor, positions: int, weight: Tensor, windows: int = 256
) -> float:
    """Mean loss in nats a token over the first ``windows`` windows of ``ids`` that begin at ``starts``."""
    first = starts[starts <= len(ids) - positions][:windows, None]
    rows = (first + torch.arange(positions)).split(32)
    losses = [_loss(model, ids[part], weight[part]).item() * len(part) for part in rows]
    return sum(losses) / sum(map(len, rows))


def read_texts(files: Sequence[Path], split: str | None = None) -> Iterator[Text]:
    """Texts of plain files (one a line) and manifests (.jsonl: ``captions``, or ``target``; one group a row).

    ``split`` keeps only the rows of that split; rows without the key always count.
    """
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for line in filter(None, map(str.strip, lines)):
                if file.suffix != ".jsonl":
                    yield line
                    continue
                row = json.loads(line)
                if split is None or row.get("split", split) == split:
                    yield [text for text in row.get("captions") or [row.get("target", "")] if text]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="text files (one text a line) or .jsonl manifests")
    parser.add_argument("--folder", type=Path, required=True, help="where the model and its tokenizer are written")
    parser.add_argument("--split", help="train only on manifest rows of this split")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--positions", type=int, default=128, help="longest prefix + caption, in tokens")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--held-back", type=float, default=0.02, help="share of texts kept for the reported loss")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    texts = read_texts(options.pop("files"), options.pop("split"))
    result = train_decoder(texts, **options)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
