"""Plan text ↔ steps: ``WORDS actions: 1: pick(red circle) 2: put(red circle, centre)``.

The form is that of EgoCOT's plans, words and then numbered ``verb(noun, ...)`` steps (EmbodiedGPT, Mu et al. 2023,
https://arxiv.org/abs/2305.15021).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmprefix.errors import InputError

_MARK = re.compile(r"\bactions\s*:", re.IGNORECASE)
_NUMBER = re.compile(r"\s*(\d{1,6})\s*[:.)]\s*")  # a text may be generated: thousands of digits are no number
_STEP = re.compile(r"\s*([^\W\d_][\w \-']*?)\s*\(([^()]*)\)\s*")
_BETWEEN = re.compile(r"[\s,;.]*")
_SHOWN = 60  # characters of a text in an error


@dataclass(frozen=True)
class Step:
    """One action: a verb, of one word or several, and what it is done to and with, in order."""

    verb: str
    nouns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.verb}({', '.join(self.nouns)})"


@dataclass(frozen=True)
class Plan:
    """Steps in order, and the words before them (empty: none)."""

    steps: tuple[Step, ...]
    words: str = ""

    def __str__(self) -> str:
        return format_plan(self.steps, self.words)


def format_plan(steps: Sequence[Step], words: str = "") -> str:
    """Text of a plan, its steps numbered from 1; InputError for a plan without a step."""
    if not steps:
        raise InputError("plan: no step; give at least one")
    numbered = " ".join(f"{number}: {step}" for number, step in enumerate(steps, start=1))
    return f"{words} actions: {numbered}".strip()


def parse_step(text: str) -> Step:
    """Step of ``verb(noun, ...)``; InputError names what is wrong with any other text."""
    match = _STEP.fullmatch(text)
    if match is None:
        raise InputError(f"step {_shown(text)}: write it as verb(noun, noun)")
    return _step(match)


def parse_plan(text: str) -> Plan:
    """Plan of a text: the steps behind the last "actions:", numbered 1, 2, 3 ... by ``1:``, ``1.`` or ``1)``.

    Commas, semicolons, full stops and white space between steps are skipped; letter case is kept. Raises InputError for
    a text without "actions:", without a step, with a step that is no ``verb(noun, ...)``, and with numbers out of
    order.
    """
    marks = list(_MARK.finditer(text))
    if not marks:
        raise InputError(f'plan {_shown(text)}: has no "actions:"; write the steps behind it as 1: verb(noun)')
    words, place, steps = text[: marks[-1].start()].strip(), marks[-1].end(), list[Step]()
    while rest := text[place:].strip():
        number = _NUMBER.match(text, place)
        if number is None or int(number[1]) != len(steps) + 1:
            raise InputError(f"plan: {_shown(rest)} stands where step {len(steps) + 1} should; number steps from 1 on")
        match = _STEP.match(text, number.end())
        if match is None:
            raise InputError(f"plan: step {number[1]}, {_shown(text[number.end() :])}: write it as verb(noun, noun)")
        steps.append(_step(match))
        between = _BETWEEN.match(text, match.end())
        place = match.end() if between is None else between.end()
    if not steps:
        raise InputError(f"plan {_shown(text)}: no step behind its actions:")
    return Plan(tuple(steps), words)


def _step(match: re.Match[str]) -> Step:
    nouns = [" ".join(noun.split()) for noun in match[2].split(",")] if match[2].strip() else []
    if "" in nouns:
        raise InputError(f"step {_shown(match[0])}: a noun is empty; leave out the comma")
    return Step(" ".join(match[1].split()), tuple(nouns))


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
