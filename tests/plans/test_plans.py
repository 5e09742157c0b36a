"""Plan text and steps: both ways, what is refused and how, and scores counted by hand."""

from __future__ import annotations

import pytest

from mmprefix.errors import InputError
from mmprefix.plans import Plan, Step, format_plan, parse_plan, parse_step, score_plans

PICK, PUT = Step("pick", ("red circle",)), Step("put", ("red circle", "top left"))
TEXT = "plan: move the red circle. actions: 1: pick(red circle) 2: put(red circle, top left)"


def test_a_plan_goes_to_text_and_back():
    plan = Plan((PICK, PUT), "plan: move the red circle.")
    assert str(plan) == format_plan(plan.steps, plan.words) == TEXT
    assert parse_plan(TEXT) == plan
    assert parse_step("pick(red circle)") == PICK
    assert parse_plan("actions: 1: wait()").steps == (Step("wait"),)


@pytest.mark.parametrize(
    "text",
    [
        "Actions:\n1. pick(red circle)\n2. put(red circle, top left)\n",
        "actions: 1) pick( red  circle ), 2) put(red circle,top left).",
        "the actions: are these. ACTIONS : 1: pick(red circle); 2: put(red circle , top left);",
    ],
)
def test_other_numbers_and_separators_are_read(text: str):
    assert parse_plan(text).steps == (PICK, PUT)


def test_a_verb_may_have_several_words():
    assert parse_step("pick up(the paint)") == Step("pick up", ("the paint",))
    assert parse_plan("actions: 1: turn-on(tap) 2: pick up(cup)").steps[1].verb == "pick up"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("move the circle", 'has no "actions:"'),
        ("actions: ", "no step behind its actions"),
        ("actions: pick(cup)", "stands where step 1 should"),
        ("actions: 1: pick(cup) 3: put(cup, table)", "stands where step 2 should"),
        ("actions: 1: pick(cup 2: put(cup)", "step 1"),
        ("actions: 1: pick the cup", "write it as verb"),
        ("actions: 1: put(cup, )", "a noun is empty"),
        ("actions: 1: 2(cup)", "step 1"),
    ],
)
def test_what_is_no_plan_is_refused(text: str, message: str):
    with pytest.raises(InputError, match=message):
        parse_plan(text)


def test_errors_are_short_and_an_empty_plan_has_no_text():
    with pytest.raises(InputError, match="stands where step 1 should"):
        parse_plan(f"actions: {'1' * 5000}: pick(it)")  # Python makes no number of so many digits
    with pytest.raises(InputError) as caught:
        parse_plan("word " * 500)
    assert len(str(caught.value)) < 200
    with pytest.raises(InputError, match="no step"):
        format_plan([])
    with pytest.raises(InputError, match="write it as verb"):
        parse_step("pick(a) put(b)")


def test_scores_are_those_counted_by_hand():
    wrong_place = "actions: 1: pick(red circle) 2: put(red circle, centre)"
    longer = "actions: 1: Pick(Red circle) 2: put(red circle, top left) 3: remove(red circle)"
    scores = score_plans([TEXT, wrong_place, longer, "no plan"], [TEXT] * 4)
    assert scores.exact == 1 / 4
    assert scores.steps == pytest.approx((1 + 1 / 2 + 2 / 3 + 0) / 4)
    assert scores.verbs == pytest.approx((1 + 1 + 2 / 3 + 0) / 4)
    assert (scores.unreadable, scores.count) == (1 / 4, 4)


def test_words_before_the_steps_do_not_count_but_order_does():
    assert score_plans(["other words actions: 1: a(b) 2: c(d)"], ["actions: 1: a(b) 2: c(d)"]).exact == 1
    assert score_plans(["actions: 1: c(d) 2: a(b)"], ["actions: 1: a(b) 2: c(d)"]).steps == 0
    with pytest.raises(InputError, match="1 texts and 2 references"):
        score_plans(["a"], ["b", "c"])
    with pytest.raises(InputError, match="actions"):
        score_plans(["a"], ["b"])
