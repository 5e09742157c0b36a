"""Train a small GPT-2 to answer questions about the sentence that stands before, without any label.

A sentence asks its own questions (which words follow 'wake me up at'? is 'music' mentioned?), a spoiled one asks for
the sentence that was meant, and sentences of similar wording form groups that are asked for by their words
(reading/).
Frozen, such a model is to be taught other questions about a transcript by a prefix alone. The form is always

    transcript: wake me up at nine am
    question: which words follow 'wake me up at'?
    answer: nine am<|endoftext|>

    python recipes/pretrain/reader.py slurp/manifest.jsonl --captions coco.jsonl --folder runs/reader
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmprefix.recipes.pretrain.decoder import DecoderPlan, train_decoder
from mmprefix.recipes.pretrain.decoder_tokens import END, read_texts
from mmprefix.recipes.pretrain.reading.questions import Asker, texts_about
from mmprefix.recipes.pretrain.reading.words import Words, build_corpus


def plain(text: str) -> Words:
    """Words of a text as a recogniser writes them: small letters, and no punctuation but within words."""
    return re.findall(r"[a-z0-9]+(?:['@&-][a-z0-9]+)*", text.lower())


def read_requests(manifests: Sequence[Path]) -> tuple[list[Words], dict[int, list[Words]], list[Words]]:
    """Read the different transcripts of split train, spoiled forms of some (``asr_1best``), and those of split val.

    A transcript that any of the manifests has in another split is not trained on. Labels are not read.
    """
    rows = [json.loads(line) for path in manifests for line in path.read_text(encoding="utf-8").splitlines() if line]
    rows = [row for row in rows if plain(row.get("transcript", ""))]
    held = {" ".join(plain(row["transcript"])) for row in rows if row.get("split") != "train"}
    train: dict[str, list[str]] = {}
    for row in rows:
        text = " ".join(plain(row["transcript"]))
        if text not in held:
            outputs = [" ".join(plain(other)) for other in row.get("asr_1best", [])]
            train.setdefault(text, []).extend(other for other in outputs if other not in ("", text))
    spoiled = {index: [text.split() for text in texts] for index, texts in enumerate(train.values()) if texts}
    val = [plain(row["transcript"]) for row in rows if row.get("split") == "val"]
    return [text.split() for text in train], spoiled, val


def read_general(files: Sequence[Path]) -> list[Words]:
    """Read the captions of 3 to 20 words, of all rows but those of split test."""
    groups = [group for split in ("train", "val") for group in read_texts(files, split)]
    texts = {text: None for group in groups for text in ([group] if isinstance(group, str) else group)}
    return [words for words in map(plain, texts) if 3 <= len(words) <= 20]


@torch.no_grad()
def measure(folder: Path, asker: Asker, sentences: Sequence[Words], count: int) -> dict[str, float]:
    """Share of exact answers to each form of question, about the first ``count`` sentences that allow it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = cast(Any, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)).eval()
    shares: dict[str, float] = {}
    for form in asker.forms:
        asked = [(words, pair) for words in sentences if (pair := form(words))][:count]
        right = 0
        for words, (question, answer) in asked:
            prompt = texts_about(words, [(question, "")])[0].rstrip()
            ids = tokenizer(END + prompt, return_tensors="pt")["input_ids"]
            output = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
            right += tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip() == answer
        if asked:
            shares[form.__name__] = right / len(asked)
    return shares


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("requests", nargs="+", type=Path, help=".jsonl manifests with transcripts; split train is read")
    parser.add_argument("--captions", nargs="+", type=Path, required=True, help=".jsonl manifests of general sentences")
    parser.add_argument("--folder", type=Path, required=True, help="where the model and its tokenizer are written")
    parser.add_argument("--texts", type=int, default=60_000, help="transcripts with their questions to make")
    parser.add_argument("--views", type=int, default=60, help="ways to sort the requests into groups")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--vocab-size", type=int, default=2000)
    parser.add_argument("--positions", type=int, default=192, help="longest prefix + transcript + question + answer")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens a step")
    parser.add_argument("--lr", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--rest", type=float, default=0.2, help="what a token outside of answers weighs in the loss")
    parser.add_argument("--measure", type=int, default=40, help="held-out sentences a form of question is tried on")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    requests, misheard, val = read_requests(options.pop("requests"))
    general, seed, folder = read_general(options.pop("captions")), options["seed"], options.pop("folder")
    corpus = build_corpus(requests, misheard, general, views=options.pop("views"), seed=seed)
    texts, count = list(Asker(corpus, seed).texts(options.pop("texts"))), options.pop("measure")
    plan = DecoderPlan(**options, whole=True, answers="\nanswer:", muon=True, held_back=0.005)
    result = train_decoder(texts, folder, plan)
    print(json.dumps({**result, "exact": measure(folder, Asker(corpus, seed + 1), val, count)}))


if __name__ == "__main__":
    main()
