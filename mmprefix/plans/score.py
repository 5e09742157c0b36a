"""How right plans are: all steps, and the share of the steps, of plans beside their references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmprefix.errors import InputError
from mmprefix.plans.steps import Step, parse_plan


@dataclass(frozen=True)
class PlanScores:
    """Means over ``count`` plans.

    Args:
        exact: share of plans with all steps right, in order and number.
        steps: mean share of a plan's steps that stand at the right position; the longer of the two plans counts.
        verbs: the same of the verbs alone.
        unreadable: share of texts that are no plan, whose steps are all wrong.
        count: number of plans.
    """

    exact: float
    steps: float
    verbs: float
    unreadable: float
    count: int


def score_plans(texts: Sequence[str], references: Sequence[str]) -> PlanScores:
    """Scores of plan ``texts`` beside one reference each; words before the steps and letter case do not count.

    Raises InputError for another number of references, for none, and for a reference that is no plan.
    """
    if len(texts) != len(references) or not texts:
        raise InputError(f"plans: {len(texts)} texts and {len(references)} references; give one reference a text")
    plans, wanted = [_steps_of(text) for text in texts], [parse_plan(text).steps for text in references]
    pairs = [(_lower(plan), _lower(steps)) for plan, steps in zip(plans, wanted, strict=True)]
    count = len(pairs)
    return PlanScores(
        exact=sum(plan == steps for plan, steps in pairs) / count,
        steps=sum(map(_share, *zip(*pairs, strict=True))) / count,
        verbs=sum(_share([s.verb for s in plan], [s.verb for s in steps]) for plan, steps in pairs) / count,
        unreadable=sum(not plan for plan in plans) / count,
        count=count,
    )


def _steps_of(text: str) -> tuple[Step, ...]:
    """Steps of a text that was generated; none where it is no plan."""
    try:
        return parse_plan(text).steps
    except InputError:
        return ()


def _lower(steps: Sequence[Step]) -> list[Step]:
    return [Step(step.verb.lower(), tuple(noun.lower() for noun in step.nouns)) for step in steps]


def _share(one: Sequence[object], other: Sequence[object]) -> float:
    """Share of positions at which both hold the same."""
    return sum(a == b for a, b in zip(one, other, strict=False)) / max(len(one), len(other))
