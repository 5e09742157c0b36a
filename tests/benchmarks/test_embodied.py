"""Studies of plans: rows and shuffled clips of the embedded world, steps of ALFRED parted and scored by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies.embodied import alfred
from benchmarks.studies.embodied.plans import next_clips, plan_table, policy_table, rows_of_split
from mmprefix.plans.score import score_plans
from mmprefix.plans.steps import parse_plan
from mmprefix.world.scenes import PLACES


def test_rows_have_a_place_for_each_step_and_the_next_clip_is_another():
    rows = rows_of_split("test", 4, seed=0)
    assert len(rows) == 12
    assert all(len(row.places) == len(parse_plan(row.plan).steps) for row in rows)
    assert {place for row in rows for place in row.places} <= set(range(len(PLACES)))
    others = next_clips(rows)
    assert all(row.frames is not other for row, other in zip(rows, others, strict=True))
    assert {id(row.frames) for row in rows} == {id(other) for other in others}
    assert rows[0].ask("put everything back")["video"] is rows[0].frames


def test_tables_have_a_row_for_each_way():
    scores = {"clip": score_plans(["actions: 1: a(b)"], ["actions: 1: a(b)"])}
    assert "| clip   |     1 |           1.000 |" in plan_table(scores)
    figures = {"clip": {"steps": 0.5, "all": 0.25}, "shuffled": {"steps": 0.125, "all": 0.0}}
    assert plan_table(scores).count("\n") == 2
    assert "0.500" in policy_table({"plan": figures})
    assert policy_table({"plan": figures}).index("0.125") < policy_table({"plan": figures}).index("0.250")


def test_steps_are_numbered_and_parted_again():
    steps = ["Turn left.", "Take the 2: cups.", "Put 1: down."]
    assert alfred.numbered(steps[:1]) == "1: Turn left."
    assert alfred.split_steps(alfred.numbered(["Go.", "Take it.", "Stop."])) == ["Go.", "Take it.", "Stop."]
    assert alfred.split_steps("no number") == []
    assert alfred.split_steps("1: Go. 3: Take it.") == ["Go. 3: Take it."]


def test_scores_are_those_counted_by_hand():
    row = {
        "context": "task: x; plan: goto sink basin; pick up cup (sliced)",
        "captions": ["1: Go to the sink. 2: Take it."],
    }
    assert alfred.actions(row["context"]) == [{"sink", "basin"}, {"cup"}]
    own = alfred.scores(row["captions"], [row])
    assert own == {"rouge_l": 1.0, "at its place": 1.0, "names": 0.5, "count": 1.0}
    short = alfred.scores(["1: go to the SINK"], [row])
    assert short["at its place"] == 0.5
    assert (short["names"], short["count"]) == (0.5, 0.0)
    assert 0 < short["rouge_l"] < 1
    assert alfred.scores([""], [row])["rouge_l"] == 0


def test_a_numbered_plan_is_scored_as_the_plain_one():
    plain = "task: x; plan: goto sink basin; pick up cup (sliced)"
    plan = alfred.numbered_plan(plain)
    assert plan == "task: x; plan: 1: goto sink basin; 2: pick up cup (sliced)"
    assert alfred.plain_plan(plan) == plain
    assert alfred.actions(plan) == alfred.actions(plain)


def test_the_nearest_plan_is_copied():
    rows: list[dict[str, Any]] = [
        {"context": "plan: goto sink; pick up cup", "captions": ["1: a"]},
        {"context": "plan: goto desk; pick up pen", "captions": ["1: b"]},
    ]
    pytest.importorskip("sklearn")
    assert alfred.nearest(rows, ["plan: goto desk; put pen at desk", "plan: pick up cup"]) == ["1: b", "1: a"]


def test_the_manifest_of_plans_and_steps(tmp_path: Path):
    row = {"id": "a", "plan": "plan: goto sink", "target": "Go.", "steps": ["Go to it."], "split": "val", "user": "u"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    alfred.write(tmp_path, tmp_path / "out")
    wanted = {"id": "a", "context": "plan: 1: goto sink", "captions": ["1: Go to it."], "split": "val"}
    assert alfred.read(tmp_path / "out", "val") == [wanted]
    assert alfred.read(tmp_path / "out", "test") == []
