"""Tune a Mamba by an offset of its states at every step; its own weights stay frozen.

State-offset Tuning: State-based Parameter-Efficient Fine-Tuning for State Space Models (Kang et al.),
https://arxiv.org/abs/2503.03499. Prompts and prefixes stand at the beginning of a text, and a state forgets them.
Published for 130m: offsets of the state at 4e-4, of the output at 4e-3, batches of 4, 10 epochs.

    python -m mmprefix.recipes.state_offset.train --out runs/parts/state_offset
    python -m mmprefix.recipes.state_offset.train --model state-spaces/mamba-130m-hf --dry_run

Without ``--model`` a small Mamba of random weights from a seed reads bytes, which proves the mechanism and no more: no
pretrained Mamba was at hand. With one (a folder, or a name of the hub) the texts go through its tokenizer. The data
are those of docs/methods.md: notes of a scene → a caption in another manner; the loss is that of the caption.
``--dry_run`` prints the numbers that are trained; the sizes of the published Mambas are known without the hub.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from mmprefix.atomic import write_directory_atomically
from mmprefix.decoders.state_space.state_offset import StateOffset
from mmprefix.errors import InputError
from mmprefix.recipes.pretrain.loop import LogLines, every_hundred, train
from mmprefix.recipes.pretrain.plan import read_plan, run
from mmprefix.world.manners import rows

log = logging.getLogger("state_offset")
WEIGHTS, RECORD = "offset.safetensors", "offset.json"
PUBLISHED = {  # layers and width of https://github.com/state-spaces/mamba
    "130m": (24, 768), "370m": (48, 1024), "790m": (48, 1536), "1.4b": (48, 2048), "2.8b": (64, 2560)
}  # fmt: skip
Text = tuple[list[int], int]  # token ids, and how many of them at the beginning are read alone


@dataclass(frozen=True)
class OffsetPlan:
    """Settings of a training; the rate warms up for a tenth of the steps and falls along a cosine."""

    kind: Literal["state", "output"] = "state"
    texts: int = 64
    held: int = 16
    steps: int = 200
    batch_size: int = 8
    lr: float = 2e-2
    seed: int = 0


def random_mamba(seed: int) -> Any:
    """Small Mamba of random weights that reads bytes; token 256 ends a text."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(seed)
    config = MambaConfig(vocab_size=257, hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=2)
    return MambaForCausalLM(config).eval()


def published_mamba(name: str) -> Any:
    """Mamba of a published size without weights, on the meta device. InputError for another ``name``."""
    from transformers import MambaConfig, MambaForCausalLM

    size = next((size for size in PUBLISHED if f"mamba-{size}" in name), None)
    if size is None:
        raise InputError(f"--model {name}: a dry run knows the sizes {', '.join(PUBLISHED)}; name one, or a folder")
    layers, width = PUBLISHED[size]
    with torch.device("meta"):
        return MambaForCausalLM(MambaConfig(vocab_size=50280, hidden_size=width, num_hidden_layers=layers)).eval()


def open_mamba(name: str | None, seed: int) -> tuple[Any, Any]:
    """Model and tokenizer (None: bytes) of a folder or a hub name, or the random one."""
    if name is None:
        return random_mamba(seed), None
    from transformers import AutoTokenizer, MambaForCausalLM

    tokenizer: Any = AutoTokenizer
    return MambaForCausalLM.from_pretrained(name).eval(), tokenizer.from_pretrained(name)


def as_text(tokenizer: Any, before: str, target: str) -> Text:
    """Token ids of a prompt and its target, the end included."""
    if tokenizer is None:
        head, tail = list(before.encode()), [*target.encode(), 256]
    else:
        head, tail = tokenizer(before)["input_ids"], [*tokenizer(target)["input_ids"], tokenizer.eos_token_id]
    return [*head, *tail], len(head)


def loss_of(lm: Any, texts: Sequence[Text]) -> Tensor:
    """Cross entropy of the targets' tokens, mean over all."""
    longest = max(len(ids) for ids, _ in texts)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in texts])
    target = torch.tensor([
        [token if at >= head else -100 for at, token in enumerate(row)] + [-100] * (longest - len(row))
        for row, head in texts
    ])  # fmt: skip
    logits = lm(ids[:, :-1], use_cache=False).logits.float()
    return F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())


def draw(texts: Sequence[Text], plan: OffsetPlan) -> Iterator[list[Text]]:
    """Batches of ``texts`` in an order of the plan's seed, again and again."""
    generator = torch.Generator().manual_seed(plan.seed)
    while True:
        order = torch.randperm(len(texts), generator=generator)
        for part in order[: len(order) // plan.batch_size * plan.batch_size].view(-1, plan.batch_size):
            yield [texts[int(at)] for at in part]


def fit(lm: Any, texts: Sequence[Text], plan: OffsetPlan) -> StateOffset:
    """Offset for ``lm``, trained on ``texts``; it acts on the model from now on."""
    if len(texts) < plan.batch_size:
        raise InputError(f"plan.batch_size {plan.batch_size}: there are {len(texts)} texts; give no more")
    offset = StateOffset(lm, plan.kind)
    optimizer = torch.optim.AdamW(offset.parameters(), plan.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.lr, plan.steps, pct_start=0.1)

    def loss(batch: list[Text]) -> Tensor:
        return loss_of(lm, batch)

    lines = LogLines(log, every_hundred(plan.steps))
    train(offset, loss, draw(texts, plan), steps=plan.steps, schedule=schedule, callbacks=[lines])
    return offset


def load_offset(folder: Path, lm: Any) -> StateOffset:
    """Offset of ``folder``, which acts on ``lm`` from now on. InputError for one of other sizes."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    offset = StateOffset(lm, record["plan"]["kind"])
    tensor = load_file(folder / WEIGHTS)["offset"]
    if tensor.shape != offset.offset.shape:
        offset.remove()
        raise InputError(f"{folder}: its offset has the shape {tuple(tensor.shape)}, this model's another")
    with torch.no_grad():
        offset.offset.copy_(tensor)
    return offset


def save_offset(folder: Path, offset: StateOffset, record: dict[str, Any]) -> None:
    """Write the offset and its ``record`` whole or not at all."""

    def write(inside: Path) -> None:
        save_file({"offset": offset.offset.detach().contiguous()}, inside / WEIGHTS)
        (inside / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    write_directory_atomically(folder, write)


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Train as the command line asks, write offset and figures to ``--out``, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder or hub name of a Mamba; default: a small random one")
    parser.add_argument("--plan", default="{}", help='settings as JSON, such as \'{"kind": "output"}\'')
    parser.add_argument("--dry_run", action="store_true", help="print the trained numbers, and stop")
    parser.add_argument("--out", type=Path, default=Path("runs/parts/state_offset"))
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    plan = read_plan(OffsetPlan, options.plan)
    if options.dry_run:
        lm = published_mamba(options.model) if options.model else random_mamba(plan.seed)
        figures: dict[str, float] = {"trained": StateOffset(lm, plan.kind).offset.numel()}
    else:
        lm, tokenizer = open_mamba(options.model, plan.seed)
        pairs = [(f"{row['context']}\n", str(row["captions"][0])) for row in rows("train", plan.texts + plan.held)]
        texts = [as_text(tokenizer, before, target) for before, target in pairs]
        held = texts[plan.texts :]
        with torch.no_grad():
            figures = {"frozen": loss_of(lm, held).item()}
        offset = fit(lm, texts[: plan.texts], plan)
        with torch.no_grad():
            figures |= {"tuned": loss_of(lm, held).item(), "trained": offset.offset.numel()}
        save_offset(options.out, offset, {"model": options.model, "plan": asdict(plan), "held": figures})
    log.info("%s", json.dumps(figures))
    return figures


if __name__ == "__main__":
    run(main)
