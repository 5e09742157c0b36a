"""Plans as text and back: numbered ``verb(noun, ...)`` steps behind a sentence, as in EgoCOT; scores."""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.plans.score import PlanScores as PlanScores
    from mmprefix.plans.score import score_plans as score_plans
    from mmprefix.plans.steps import Plan as Plan
    from mmprefix.plans.steps import Step as Step
    from mmprefix.plans.steps import format_plan as format_plan
    from mmprefix.plans.steps import parse_plan as parse_plan
    from mmprefix.plans.steps import parse_step as parse_step

_FILES = {
    **dict.fromkeys(("Plan", "Step", "format_plan", "parse_plan", "parse_step"), "steps"),
    **dict.fromkeys(("PlanScores", "score_plans"), "score"),
}
__all__ = [
    "Plan",
    "PlanScores",
    "Step",
    "format_plan",
    "parse_plan",
    "parse_step",
    "score_plans",
]
__getattr__ = lazy_exports(__name__, _FILES)
