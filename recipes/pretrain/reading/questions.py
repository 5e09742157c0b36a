"""Questions about a sentence that the sentence itself answers, with their answers, drawn at random.

The form of the texts is always

    transcript: wake me up at nine am
    question: which words follow 'wake me up at'?
    answer: nine am

Questions ask for words by their neighbours, for words of a kind, for what a spoiled sentence meant, and for the groups
of a request (words.py).
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from mmprefix.recipes.pretrain.decoder_tokens import Text
from mmprefix.recipes.pretrain.reading.words import Corpus, Words

Pair = tuple[str, str]
"""A question and its answer."""

NONE = "none"

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


def texts_about(words: Words, pairs: Sequence[Pair]) -> list[str]:
    """Texts about one transcript: the first begins with it, the others go on."""
    first, *others = [f"question: {question}\nanswer: {answer}" for question, answer in pairs]
    return [f"transcript: {' '.join(words)}\n{first}", *others]


class Asker:
    """Random questions about the sentences of a corpus."""

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
        """Draw ``count`` groups of texts."""
        for _ in range(count):
            yield self.pick.choices((self.read, self.mend, self.about, self.sort), (50, 6, 30, 14))[0]()

    # Texts: a transcript, questions about it, and their answers.

    def read(self) -> list[str]:
        """Draw a sentence, real or made up, and questions about its words."""
        chance = self.pick.random()
        words = self.pick.choice(self.corpus.general if chance < 0.35 else self.corpus.requests)
        if chance > 0.7:
            words = self.varied(words)
        if chance > 0.93:
            words = self.pick.sample(words, len(words))
        return texts_about(words, self.pairs(words, self.pick.randint(1, 4)))

    def mend(self) -> list[str]:
        """Draw a misheard request, and ask for the request as it was meant."""
        index = self.pick.randrange(len(self.corpus.requests))
        words = self.corpus.requests[index]
        spoiled = self.pick.choice(self.corpus.misheard.get(index) or [self.noisy(words)])
        return texts_about(spoiled, [(self.say(MEANT), " ".join(words)), *self.pairs(spoiled, 1)])

    def about(self) -> list[str]:
        """Ask for the groups of a request in some views, its topic, and the words and wording of requests like it."""
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
        return texts_about(self.noisy(words) if pick.random() < 0.3 else words, pairs)

    def sort(self) -> list[str]:
        """Draw requests of a few groups one after the other; half of the time the groups have swapped names."""
        if not self.corpus.views:
            return self.about()
        pick, labels = self.pick, self.pick.choice(self.corpus.views)
        names = sorted(set(labels))
        some = pick.sample(names, min(len(names), pick.randint(2, 4)))
        answers = dict(zip(some, some if pick.random() < 0.5 else pick.sample(names, len(some)), strict=True))
        inside = [index for index, name in enumerate(labels) if name in answers]
        question = self.say(WANTED)
        chosen = [pick.choice(inside) for _ in range(8)]
        return [texts_about(self.corpus.requests[index], [(question, answers[labels[index]])])[0] for index in chosen]

    # Questions about the words of a sentence; None where the sentence does not allow the question.

    def pairs(self, words: Words, count: int) -> list[Pair]:
        """Draw ``count`` questions about a sentence."""
        pairs: list[Pair] = []
        while len(pairs) < count:
            form = self.pick.choices(list(self.forms), list(self.forms.values()))[0]
            if pair := form(words):
                pairs.append(pair)
        return pairs

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
        """Ask for the words of a kind, by others of that kind; in the answer commas part all but neighbours."""
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
        """Draw one of several ways to put a question."""
        return self.pick.choice(forms).format(*values)

    def part(self, words: Words, least: int, most: int) -> tuple[int, int] | None:
        """Draw begin and end of up to three words between two indices; None if these words occur more than once."""
        if most <= least:
            return None
        size = self.pick.randint(1, min(3, most - least))
        begin = self.pick.randint(least, most - size)
        return (begin, begin + size) if _count(words, words[begin : begin + size]) == 1 else None

    def foreign(self, words: Words) -> str:
        """Draw a word or two of a request that the sentence does not hold."""
        while True:
            other = self.pick.choice(self.corpus.requests)
            at = self.pick.randrange(len(other))
            some = other[at : at + self.pick.choice((1, 1, 2))]
            if not _count(words, some):
                return _join(some)

    def topic(self, index: int) -> str:
        """Rarest word of a request that the requests like it share."""
        corpus = self.corpus
        near = [corpus.requests[other] for other in corpus.near[index][:5]]

        def matter(word: str) -> float:
            return (0.2 + sum(word in other for other in near)) * self.rareness(word)

        return max(corpus.requests[index], key=matter)

    def kin(self, index: int) -> str:
        """Draw a word of a request or of one like it, sooner a rare one than a frequent one."""
        corpus = self.corpus
        words = corpus.requests[self.pick.choice([index, index, *corpus.near[index]])]
        return self.pick.choices(words, [self.rareness(word) ** 2 + 1e-3 for word in words])[0]

    def rareness(self, word: str) -> float:
        return math.log(max(1.0, len(self.corpus.requests) / self.corpus.counts[word]))

    def varied(self, words: Words) -> Words:
        """Change some words of a sentence for others of their kind."""
        number = self.pick.randrange(len(self.members))
        kinds, members = self.corpus.kinds[number], self.members[number]
        return [
            self.pick.choice(members[kinds[word]]) if word in kinds and self.pick.random() < 0.4 else word
            for word in words
        ]

    def noisy(self, words: Words) -> Words:
        """Spoil a sentence as a recogniser might: of a hundred words eight are lost and eight are others."""
        kept: Words = []
        for word in words:
            chance = self.pick.random()
            if chance >= 0.08:
                kept.append(self.pick.choice(self.frequent) if chance < 0.16 else word)
        return kept or words


def _join(words: Sequence[str]) -> str:
    return " ".join(words)


def _count(words: Words, part: Words) -> int:
    return sum(words[at : at + len(part)] == part for at in range(len(words)))
