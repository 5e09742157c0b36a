"""Plans of clips that nobody trained on, with the clip and with another clip's frames; and a policy cloned from them.

    python -m benchmarks.studies.embodied.plans runs/embodied_world/3/model --json embodied.json

The clips are those of the embedded world's test split (``mmprefix.world.clips``), each with three instructions. A plan
is right when all of its steps are. "shuffled": each instruction stands beside the frames of the next clip, which
changes nothing but what was seen. The policy reads what the model makes of a clip and of its own plan, given back as
the instruction (``mmprefix.policies.cloning``), and says at which of five places each step happens; it is cloned from
clips of the training split with their true plans. "instruction": the plan is not given back, there and in training;
"encoder": only the summary of the frozen encoder is read. An action can be compared with the true one where the plan
has as many steps as the true one: the policy is asked for those.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import mmprefix
from benchmarks.lib.report import benchmark_parser, markdown_table, publish, versions
from mmprefix.inference.tasks import InputFeatures
from mmprefix.plans.score import PlanScores, score_plans
from mmprefix.policies.cloning import Demonstrations, clone
from mmprefix.world.clip_data import rows_of
from mmprefix.world.clip_texts import INSTRUCTIONS, commands
from mmprefix.world.clips import FRAMES, MovingScene, Split, draw_frames, sample_clips
from mmprefix.world.scenes import PLACES


@dataclass(frozen=True)
class Row:
    """One instruction beside a clip: the frames, the true plan, and the place of each of its steps."""

    frames: mmprefix.FrameSequence
    instruction: str
    plan: str
    places: list[int]

    def ask(self, text: str, frames: mmprefix.FrameSequence | None = None) -> dict[str, Any]:
        """Input of a call, with ``text`` as what the Embodied-former reads."""
        return {"video": frames or self.frames, "instruction": text}


def rows_of_clip(clip: MovingScene) -> list[Row]:
    """One row for each thing that can be wanted of ``clip``."""
    frames = mmprefix.FrameSequence(draw_frames(clip))
    texts = [row for task, row in rows_of(clip, [""] * FRAMES) if task == "plan"]
    return [
        Row(
            frames,
            row["instruction"],
            row["captions"][0],
            [PLACES.index(to) for _, to in commands(clip, row["wanted"])],
        )
        for row in texts
    ]


def rows_of_split(split: Split, clips: int, seed: int) -> list[Row]:
    """Rows of the first clips of a split, three of each."""
    return [row for clip in islice(sample_clips(seed, split), clips) for row in rows_of_clip(clip)]


def next_clips(rows: Sequence[Row]) -> list[mmprefix.FrameSequence]:
    """Frames of the clip after each row's own; the last row's is the first clip."""
    each = len(INSTRUCTIONS)
    return [rows[(number + each) % len(rows)].frames for number in range(len(rows))]


def write_plans(model: Any, rows: Sequence[Row], frames: Sequence[mmprefix.FrameSequence]) -> list[str]:
    """Plans that the model writes for each instruction beside these frames."""
    inputs = [row.ask(row.instruction, seen) for row, seen in zip(rows, frames, strict=True)]
    return list(model(inputs, prompt=[f"{row.instruction}:" for row in rows], batch_size=60))


def policy_scores(
    read: Callable[[Sequence[Row], Sequence[str], Sequence[mmprefix.FrameSequence]], list[InputFeatures]],
    shown: Sequence[Row],
    rows: Sequence[Row],
    plans: dict[str, list[str]],
) -> dict[str, dict[str, float]]:
    """Share of steps with the right place, and of plans with all of them, with the clip and with the next one."""
    own = [row.frames for row in shown]
    features = read(shown, [row.plan for row in shown], own)
    policy = clone(Demonstrations.of(features, [row.places for row in shown]), len(PLACES))
    scores: dict[str, dict[str, float]] = {}
    for name, frames in {"clip": [row.frames for row in rows], "shuffled": next_clips(rows)}.items():
        seen = read(rows, plans[name], frames)
        acts = [policy.act(value, len(row.places)) for value, row in zip(seen, rows, strict=True)]
        right = [a == b for act, row in zip(acts, rows, strict=True) for a, b in zip(act, row.places, strict=True)]
        whole = [act == row.places for act, row in zip(acts, rows, strict=True)]
        scores[name] = {"steps": sum(right) / len(right), "all": sum(whole) / len(whole)}
    return scores


def main() -> None:
    """Print both tables; see ``--help``."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("model", help="folder of the model that stage 3 has saved")
    parser.add_argument("--clips", type=int, default=100, help="test clips, three plans each (default: 100)")
    parser.add_argument("--shown", type=int, default=400, help="training clips to clone from (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="of the clips (default: 0, that of the recipes)")
    options = parser.parse_args()
    began, model = time.process_time(), mmprefix.load(options.model, device="cpu")
    rows = rows_of_split("test", options.clips, options.seed)
    shown = rows_of_split("train", options.shown, options.seed)
    frames = {"clip": [row.frames for row in rows], "shuffled": next_clips(rows)}
    plans = {name: write_plans(model, rows, seen) for name, seen in frames.items()}
    scores = {name: score_plans(texts, [row.plan for row in rows]) for name, texts in plans.items()}

    def with_plan(part: Sequence[Row], texts: Sequence[str], seen: Sequence[Any]) -> list[InputFeatures]:
        return list(model.features([r.ask(t, f) for r, t, f in zip(part, texts, seen, strict=True)], batch_size=60))

    def with_instruction(part: Sequence[Row], texts: Sequence[str], seen: Sequence[Any]) -> list[InputFeatures]:
        return with_plan(part, [row.instruction for row in part], seen)

    def encoder_alone(part: Sequence[Row], texts: Sequence[str], seen: Sequence[Any]) -> list[InputFeatures]:
        return [InputFeatures(row.prefix[:0], row.summaries) for row in with_plan(part, texts, seen)]

    reads = {"plan": with_plan, "instruction": with_instruction, "encoder": encoder_alone}
    policies = {name: policy_scores(read, shown, rows, plans) for name, read in reads.items()}
    results = {
        "versions": versions(),
        "plans": {name: asdict(value) for name, value in scores.items()},
        "policies": policies,
        "cpu_seconds": round(time.process_time() - began),
    }
    publish(results, f"{plan_table(scores)}\n\n{policy_table(policies)}", options.json)


def plan_table(scores: dict[str, PlanScores]) -> str:
    """Plans by what was seen."""
    head = ["frames", "plans", "all steps right", "steps right", "verbs right", "no plan"]
    rows = [
        [name, str(s.count), *(f"{value:.3f}" for value in (s.exact, s.steps, s.verbs, s.unreadable))]
        for name, s in scores.items()
    ]
    return markdown_table(head, rows)


def policy_table(policies: dict[str, dict[str, dict[str, float]]]) -> str:
    """Actions by what the policy reads."""
    head = ["policy reads", "places right, clip", "shuffled", "all of a plan, clip", "shuffled"]
    rows = [
        [name, *(f"{figures[seen][key]:.3f}" for key in ("steps", "all") for seen in ("clip", "shuffled"))]
        for name, figures in policies.items()
    ]
    return markdown_table(head, rows)


if __name__ == "__main__":
    main()
