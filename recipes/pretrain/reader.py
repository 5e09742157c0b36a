"""Trains a small GPT-2 to answer questions about the sentence that stands before, without any label.

A sentence asks its own questions (which words follow 'wake me up at'? is 'music' mentioned?), a spoiled one asks for
what was meant, and sentences of similar wording form groups that are asked for by their words (word_groups.py).
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
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmprefix.errors import InputError
from mmprefix.recipes.pretrain.decoder import END, Text, read_texts, train_decoder
from mmprefix.recipes.pretrain.reader_words import Words, feature_table, nearest, view, word_kinds

Pair = tuple[str, str]
"""A question and its answer."""

NONE = "none"
FEWEST = 20  # requests: with fewer there are no groups, and no words that a sentence does not hold

AFTER = ("which words follow '{}'?", "what comes after '{}'?", "what is said after '{}'?")
BEFORE = ("which words stand before '{}'?", "what comes before '{}'?", "what is said before '{}'?")
BETWEEN = ("which words stand between '{}' and '{}'?", "what is said between '{}' and '{}'?")
NEXT = ("which word comes after '{}'?", "which word follows '{}'?", "what is the next word after '{}'?")
PREVIOUS = ("which word comes before '{}'?", "what is the word before '{}'?")
SAID = ("does the speaker say '{}'?", "is '{}' mentioned?", "is there '{}' in it?")
WHICH = ("which of these is mentioned: {}?", "which of these does the speaker say: {}?")
EARLIER = ("which comes first: '{}' or '{}'?",)
GAP = ("which word is missing: {}?", "fill the gap: {}?")
MEANT = ("what does the speaker mean?", "say it again?", "what was said?")
LIKE = ("which words are like '{}'?", "what is said that is like '{}'?", "what stands for '{}' here?")
TOPIC = ("what is it about?", "which word matters most?")
SIMILAR = ("what is said in other words?", "what is a similar request?")
WANTED = ("what does the speaker want?", "what is the request?", "what kind of request is it?", "which group is it?")


def plain(text: str) -> Words:
    """The words of a text as a recogniser writes them: small letters, and no punctuation but within words."""
    return re.findall(r"[a-z0-9]+(?:['@&-][a-z0-9]+)*", text.lower())


def ask(words: Words, pairs: Sequence[Pair]) -> list[str]:
    """Texts about one transcript: the first begins with it, the others go on."""
    first, *others = [f"question: {question}\nanswer: {answer}" for question, answer in pairs]
    return [f"transcript: {' '.join(words)}\n{first}", *others]


@dataclass(frozen=True)
class Corpus:
    """Sentences, and what counting found in them.

    ``requests`` are what people say to a device · ``heard`` spoiled forms of some, by their index · ``general`` other
    sentences · ``counts`` of the words of requests · ``kinds`` ways to sort words, ``views`` ways to sort requests
    (the name of each one's group) · ``near`` the requests most like each.
    """

    requests: list[Words]
    heard: dict[int, list[Words]]
    general: list[Words]
    counts: Counter[str]
    kinds: list[dict[str, int]]
    views: list[list[str]]
    near: list[list[int]]


def build_corpus(
    requests: list[Words], heard: dict[int, list[Words]], general: list[Words], views: int, seed: int
) -> Corpus:
    """Sorts words and requests. Raises InputError when there are too few requests or no general sentence."""
    if len(requests) < FEWEST:
        raise InputError(f"{len(requests)} requests in the training split: {FEWEST} or more are needed")
    if not general:
        raise InputError("--captions: no sentence of 3 to 20 words in the training split")
    table, features = feature_table(requests)
    pick = random.Random(seed)
    sorts = [(pick.choice((40, 80, 160, 240)), pick.randrange(2**31)) for _ in range(views)]
    return Corpus(
        requests,
        heard,
        general,
        Counter(word for words in requests for word in words),
        [word_kinds(requests, groups, seed) for groups in (40, 80, 120)],
        [view(table, features, groups, own) for groups, own in sorts],
        nearest(table, 12),
    )


class Asker:
    """Asks questions about the sentences of a corpus, at random."""

    def __init__(self, corpus: Corpus, seed: int) -> None:
        self.corpus, self.pick = corpus, random.Random(seed)
        self.frequent = [word for word, count in corpus.counts.items() if count > 2] or list(corpus.counts)
        self.members: list[dict[int, Words]] = []
        for kinds in corpus.kinds:
            members: defaultdict[int, Words] = defaultdict(list)
            for word, kind in kinds.items():
                members[kind].append(word)
            self.members.append(dict(members))
        self.forms: dict[Callable[[Words], Pair | None], int] = {
            self.after: 4,
            self.before: 2,
            self.between: 3,
            self.neighbour: 3,
            self.said: 5,
            self.which: 3,
            self.earlier: 1,
            self.gap: 2,
            self.like: 5,
            self.ends: 1,
        }

    def texts(self, count: int) -> Iterator[Text]:
        """``count`` groups of texts."""
        for _ in range(count):
            yield self.pick.choices((self.read, self.mend, self.about, self.sort), (50, 6, 30, 14))[0]()

    # Texts: a transcript and what is asked about it.

    def read(self) -> list[str]:
        """A sentence, said or made up, and questions about its words."""
        chance = self.pick.random()
        words = self.pick.choice(self.corpus.general if chance < 0.35 else self.corpus.requests)
        if chance > 0.7:
            words = self.varied(words)
        if chance > 0.93:
            words = self.pick.sample(words, len(words))
        return ask(words, self.pairs(words, self.pick.randint(1, 4)))

    def mend(self) -> list[str]:
        """A request as it was misheard, and what was meant."""
        index = self.pick.randrange(len(self.corpus.requests))
        words = self.corpus.requests[index]
        spoiled = self.pick.choice(self.corpus.heard.get(index) or [self.noisy(words)])
        return ask(spoiled, [(self.say(MEANT), " ".join(words)), *self.pairs(spoiled, 1)])

    def about(self) -> list[str]:
        """What a request is about: its groups in some views, its topic, words and wording of requests like it."""
        corpus, pick = self.corpus, self.pick
        index = pick.randrange(len(corpus.requests))
        views = pick.sample(range(len(corpus.views)), min(3, len(corpus.views)))
        pairs = [(f"which group in view {number}?", corpus.views[number][index]) for number in views]
        if pick.random() < 0.5:
            pairs.append((self.say(TOPIC), self.topic(index)))
        if pick.random() < 0.7 or not pairs:
            pairs.append((self.say(WANTED), self.kin(index)))
        if pick.random() < 0.2:
            pairs.append((self.say(SIMILAR), " ".join(corpus.requests[pick.choice(corpus.near[index][:5])])))
        pick.shuffle(pairs)
        words = corpus.requests[index]
        return ask(self.noisy(words) if pick.random() < 0.3 else words, pairs)

    def sort(self) -> list[str]:
        """Requests of a few groups one after the other; half of the time the groups have swapped names."""
        if not self.corpus.views:
            return self.about()
        pick, labels = self.pick, self.pick.choice(self.corpus.views)
        names = sorted(set(labels))
        some = pick.sample(names, min(len(names), pick.randint(2, 4)))
        told = dict(zip(some, some if pick.random() < 0.5 else pick.sample(names, len(some)), strict=True))
        inside = [index for index, name in enumerate(labels) if name in told]
        question = self.say(WANTED)
        chosen = [pick.choice(inside) for _ in range(8)]
        return [ask(self.corpus.requests[index], [(question, told[labels[index]])])[0] for index in chosen]

    # Questions about the words of a sentence; None where the sentence does not allow the question.

    def pairs(self, words: Words, count: int) -> list[Pair]:
        """``count`` questions about a sentence."""
        found: list[Pair] = []
        while len(found) < count:
            form = self.pick.choices(list(self.forms), list(self.forms.values()))[0]
            if pair := form(words):
                found.append(pair)
        return found

    def after(self, words: Words) -> Pair | None:
        if self.pick.random() < 0.1:
            return self.say(AFTER, self.foreign(words)), NONE
        part = self.part(words, 0, len(words) - 1)
        return part and (self.say(AFTER, _join(words[slice(*part)])), _join(words[part[1] :]))

    def before(self, words: Words) -> Pair | None:
        part = self.part(words, 1, len(words))
        return part and (self.say(BEFORE, _join(words[slice(*part)])), _join(words[: part[0]]))

    def between(self, words: Words) -> Pair | None:
        if len(words) < 3:
            return None
        begin, end = sorted(self.pick.sample(range(1, len(words)), 2))
        left = words[max(0, begin - self.pick.randint(1, 2)) : begin]
        right = words[end : end + self.pick.randint(1, 2)]
        if _count(words, left) > 1 or _count(words, right) > 1:
            return None
        return self.say(BETWEEN, _join(left), _join(right)), _join(words[begin:end])

    def neighbour(self, words: Words) -> Pair | None:
        at = self.pick.randrange(len(words))
        if words.count(words[at]) > 1:
            return None
        if self.pick.random() < 0.4:
            return self.say(PREVIOUS, words[at]), words[at - 1] if at else NONE
        return self.say(NEXT, words[at]), (*words, NONE)[at + 1]

    def said(self, words: Words) -> Pair:
        if self.pick.random() < 0.5:
            return self.say(SAID, self.foreign(words)), "no"
        size = self.pick.randint(1, min(3, len(words)))
        begin = self.pick.randint(0, len(words) - size)
        return self.say(SAID, _join(words[begin : begin + size])), "yes"

    def which(self, words: Words) -> Pair:
        right = self.pick.choice(words)
        options = [right, *(self.foreign(words) for _ in range(self.pick.randint(1, 3)))]
        self.pick.shuffle(options)
        return self.say(WHICH, ", ".join(options)), right

    def earlier(self, words: Words) -> Pair | None:
        if len(set(words)) < 2:
            return None
        two = self.pick.sample(sorted(set(words)), 2)
        return self.say(EARLIER, *two), min(two, key=words.index)

    def gap(self, words: Words) -> Pair:
        at = self.pick.randrange(len(words))
        return self.say(GAP, _join([*words[max(0, at - 3) : at], "_", *words[at + 1 : at + 4]])), words[at]

    def ends(self, words: Words) -> Pair:
        return self.pick.choice((("what is the first word?", words[0]), ("what is the last word?", words[-1])))

    def like(self, words: Words) -> Pair | None:
        """The words of a kind, which is told by others of that kind: neighbours together, the rest by commas."""
        number = self.pick.randrange(len(self.members))
        kinds, members = self.corpus.kinds[number], self.members[number]
        kind = kinds.get(self.pick.choice(words))
        if kind is not None and self.pick.random() < 0.25:
            kind = self.pick.choice(list(members))
        others = [word for word in members.get(kind, []) if word not in words] if kind is not None else []
        if not others:
            return None
        marked = " ".join(word if kinds.get(word) == kind else "|" for word in words).split("|")
        runs = [run.strip() for run in marked if run.strip()]
        names = self.pick.sample(others, min(len(others), self.pick.randint(1, 3)))
        return self.say(LIKE, ", ".join(names)), ", ".join(runs) or NONE

    # What questions are made of.

    def say(self, forms: Sequence[str], *values: str) -> str:
        """One of several ways to put a question."""
        return self.pick.choice(forms).format(*values)

    def part(self, words: Words, least: int, most: int) -> tuple[int, int] | None:
        """Where up to three words begin and end between two places, if they occur only once."""
        if most <= least:
            return None
        size = self.pick.randint(1, min(3, most - least))
        begin = self.pick.randint(least, most - size)
        return (begin, begin + size) if _count(words, words[begin : begin + size]) == 1 else None

    def foreign(self, words: Words) -> str:
        """A word or two of a request that the sentence does not hold."""
        while True:
            other = self.pick.choice(self.corpus.requests)
            at = self.pick.randrange(len(other))
            some = other[at : at + self.pick.choice((1, 1, 2))]
            if not _count(words, some):
                return _join(some)

    def topic(self, index: int) -> str:
        """The rarest word of a request that the requests like it share."""
        corpus = self.corpus
        near = [corpus.requests[other] for other in corpus.near[index][:5]]

        def matter(word: str) -> float:
            return (0.2 + sum(word in other for other in near)) * self.rareness(word)

        return max(corpus.requests[index], key=matter)

    def kin(self, index: int) -> str:
        """A word of a request or of one like it, sooner a rare one than a frequent one."""
        corpus = self.corpus
        words = corpus.requests[self.pick.choice([index, index, *corpus.near[index]])]
        return self.pick.choices(words, [self.rareness(word) ** 2 + 1e-3 for word in words])[0]

    def rareness(self, word: str) -> float:
        return math.log(max(1.0, len(self.corpus.requests) / self.corpus.counts[word]))

    def varied(self, words: Words) -> Words:
        """The sentence with some words changed for others of their kind."""
        number = self.pick.randrange(len(self.members))
        kinds, members = self.corpus.kinds[number], self.members[number]
        return [
            self.pick.choice(members[kinds[word]]) if word in kinds and self.pick.random() < 0.4 else word
            for word in words
        ]

    def noisy(self, words: Words) -> Words:
        """The sentence as a recogniser might hear it: of a hundred words eight are lost and eight are others."""
        found: Words = []
        for word in words:
            chance = self.pick.random()
            if chance >= 0.08:
                found.append(self.pick.choice(self.frequent) if chance < 0.16 else word)
        return found or words


def _join(words: Sequence[str]) -> str:
    return " ".join(words)


def _count(words: Words, part: Words) -> int:
    return sum(words[at : at + len(part)] == part for at in range(len(words)))


def read_requests(manifests: Sequence[Path]) -> tuple[list[Words], dict[int, list[Words]], list[Words]]:
    """The different transcripts of split train, spoiled forms of some (``asr_1best``), and those of split val.

    What any of the manifests has in another split is not trained on. Labels are not looked at.
    """
    rows = [json.loads(line) for path in manifests for line in path.read_text(encoding="utf-8").splitlines() if line]
    rows = [row for row in rows if plain(row.get("transcript", ""))]
    held = {_join(plain(row["transcript"])) for row in rows if row.get("split") != "train"}
    train: dict[str, list[str]] = {}
    for row in rows:
        text = _join(plain(row["transcript"]))
        if text not in held:
            heard = [_join(plain(other)) for other in row.get("asr_1best", [])]
            train.setdefault(text, []).extend(other for other in heard if other not in ("", text))
    spoiled = {index: [text.split() for text in heard] for index, heard in enumerate(train.values()) if heard}
    val = [plain(row["transcript"]) for row in rows if row.get("split") == "val"]
    return [text.split() for text in train], spoiled, val


def read_general(files: Sequence[Path]) -> list[Words]:
    """Captions of 3 to 20 words, of all rows but those of split test."""
    groups = [group for split in ("train", "val") for group in read_texts(files, split)]
    texts = {text: None for group in groups for text in ([group] if isinstance(group, str) else group)}
    return [words for words in map(plain, texts) if 3 <= len(words) <= 20]


@torch.no_grad()
def measure(folder: Path, asker: Asker, sentences: Sequence[Words], count: int) -> dict[str, float]:
    """The share of exact answers to each form of question, about the first ``count`` sentences that allow it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = cast(Any, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)).eval()
    shares: dict[str, float] = {}
    for form in asker.forms:
        asked = [(words, pair) for words in sentences if (pair := form(words))][:count]
        right = 0
        for words, (question, answer) in asked:
            prompt = ask(words, [(question, "")])[0].rstrip()
            ids = tokenizer(END + prompt, return_tensors="pt")["input_ids"]
            said = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
            right += tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True).strip() == answer
        if asked:
            shares[form.__name__] = right / len(asked)
    return shares


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see ``--help``."""
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
    requests, heard, val = read_requests(options.pop("requests"))
    general, seed, folder = read_general(options.pop("captions")), options["seed"], options["folder"]
    corpus = build_corpus(requests, heard, general, options.pop("views"), seed)
    texts, count = list(Asker(corpus, seed).texts(options.pop("texts"))), options.pop("measure")
    found = train_decoder(texts, **options, whole=True, answers="\nanswer:", muon=True, held_back=0.005)
    print(json.dumps({**found, "exact": measure(folder, Asker(corpus, seed + 1), val, count)}))


if __name__ == "__main__":
    main()
