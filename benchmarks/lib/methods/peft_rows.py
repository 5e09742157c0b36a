"""peft's own prompt tuning, P-tuning, prefix tuning and LoRA on the rows, steps and schedule of ``recipes/methods``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from torch import Tensor

from benchmarks.lib.methods.runs import Figures, peak_memory, read
from mmprefix.data.samplers import BucketSampler, RowKey
from mmprefix.decoders import CausalDecoder
from mmprefix.metrics import caption
from mmprefix.training.optimization.optimizer import lr_factor
from mmprefix.world.manners import MannersData

LM = TaskType.CAUSAL_LM
CONFIGS: dict[str, tuple[float, PeftConfig]] = {
    "peft_prompt_tuning": (1e-2, PromptTuningConfig(task_type=LM, num_virtual_tokens=10)),
    "peft_p_tuning": (1e-2, PromptEncoderConfig(task_type=LM, num_virtual_tokens=10, encoder_hidden_size=128)),
    "peft_prefix_tuning": (5e-3, PrefixTuningConfig(task_type=LM, num_virtual_tokens=10)),
    "peft_lora": (1e-3, LoraConfig(task_type=LM, r=4, lora_alpha=32, lora_dropout=0.0, fan_in_fan_out=True)),
}
Ids = list[int]


class Rows:
    """Rows of a split as token ids of prompt and target, as ``CausalDecoder`` makes them."""

    def __init__(self, file: Path, decoder: CausalDecoder) -> None:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        codec, template = decoder.codec, read("base")["model"]["wording"]["context"]
        prompts = [template.format(context=row["context"]) for row in lines]
        self.captions = [row["captions"][0] for row in lines]
        self.prompts = [codec.prompt_ids(prompt, first=False) for prompt in prompts]
        self.targets = [codec.target_ids(p, text) for p, text in zip(prompts, self.captions, strict=True)]

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Padded ids, mask and labels (B N) of some rows; -100 where nothing is learned."""
        both = [(self.prompts[row], self.targets[row]) for row in rows]
        longest = max(len(prompt) + len(target) for prompt, target in both)
        ids, labels = torch.zeros(len(both), longest, dtype=torch.long), torch.full((len(both), longest), -100)
        mask = torch.zeros(len(both), longest, dtype=torch.long)
        for index, (prompt, target) in enumerate(both):
            end = len(prompt) + len(target)
            ids[index, :end] = torch.tensor(prompt + target)
            labels[index, len(prompt) : end] = torch.tensor(target)
            mask[index, :end] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def batches_of(rows: Rows, size: int, epochs: int, seed: int) -> list[list[int]]:
    """Row numbers of each batch of a training: those that ``MannersData`` draws with this seed."""
    keys = [RowKey(frozenset(), 0, 1, 0)] * len(rows.captions)
    sampler = BucketSampler(keys, size, seed=seed, bucket=False)
    return [batch.rows for epoch in range(epochs) for batch in sampler.batches(epoch)]


def fit_peft(name: str, folder: Path, rate: float, seed: int) -> Figures:
    """Train one of ``CONFIGS`` in ``folder``, once: the figures that ``runs.fit`` gives."""
    done, data = folder / "figures.json", folder.parents[1] / "data"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    MannersData(directory=str(data)).prepare_data()
    figures = _train(name, data, rate, seed)
    folder.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(figures), encoding="utf-8")
    return figures


def _train(name: str, data: Path, rate: float, seed: int) -> Figures:
    base = read("base")
    torch.manual_seed(seed)
    decoder = CausalDecoder(base["model"]["decoder"]["init_args"]["model"])
    splits = {split: Rows(data / f"{split}.jsonl", decoder) for split in ("train", "val", "test")}
    model: Any = get_peft_model(decoder.language_model.lm, CONFIGS[name][1])
    began, size = time.process_time(), base["data"]["init_args"]["batch_size"]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    batches = batches_of(splits["train"], size, base["trainer"]["max_epochs"], seed)
    factor = lr_factor("cosine", base["model"]["warmup"], len(batches))
    model.train()
    for step, rows in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor(step)
        model(**splits["train"].batch(rows)).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, base["trainer"]["gradient_clip_val"])
        optimizer.step()
        optimizer.zero_grad()
    numbers = sum(p.numel() for p in trained)
    figures: Figures = {"seconds": time.process_time() - began, "memory": peak_memory()}
    figures |= {"numbers": numbers, "bytes": 4 * numbers}
    model.eval()
    figures |= {"val": _loss(model, splits["val"]), "loss": _loss(model, splits["test"])}
    return figures | _written(model, splits["test"], decoder)


@torch.inference_mode()
def _loss(model: Any, rows: Rows) -> float:
    """Mean loss over all tokens of all targets."""
    total, tokens = 0.0, 0
    for start in range(0, len(rows.captions), 50):
        batch = rows.batch(range(start, min(start + 50, len(rows.captions))))
        count = int((batch["labels"] != -100).sum())
        total += float(model(**batch).loss) * count
        tokens += count
    return total / tokens


@torch.inference_mode()
def _written(model: Any, rows: Rows, decoder: CausalDecoder) -> dict[str, float]:
    """Scores of greedy captions, one at a time (peft's prompts and left padding do not go together), and their time."""
    texts: list[str] = []
    elapsed = 0.0
    end = decoder.codec.eos
    for index, prompt in enumerate(rows.prompts):
        began = time.process_time()
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": end, "eos_token_id": end}
        written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0]
        elapsed += time.process_time() - began if index < 50 else 0.0
        fresh = written[len(prompt) :].tolist()
        texts.append(decoder.codec.decode([number for number in fresh if number != end]))
    right = sum(text == reference for text, reference in zip(texts, rows.captions, strict=True)) / len(texts)
    scores = caption(texts, [[reference] for reference in rows.captions])
    return {"exact_match": right, "cider_d": scores["cider_d"], "generation": elapsed}
