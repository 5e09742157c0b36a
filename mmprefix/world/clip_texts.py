"""Texts of a clip: captions of a moment, questions with answers, instructions with the plan that carries them out.

A plan is words and numbered steps (``mmprefix.plans``): ``pick(red circle)``, ``put(red circle, centre)``,
``remove(red circle)`` of a thing that is to be taken away, ``bring(red circle, centre)`` of one that was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mmprefix.plans.steps import Plan, Step
from mmprefix.world.clips import Change, MovingScene
from mmprefix.world.scenes import PLACES

DESCRIBE = ("describe what is there", "what does the picture show")
NOTE = "note what happens"
INSTRUCTIONS = {
    "repeat": ("repeat what was shown", "do the same again"),
    "undo": ("undo what was shown", "put everything back"),
    "last": ("repeat only the last thing", "do the last thing once more"),
}
"""Wordings of an instruction by what is wanted: all changes, all of them backwards, the last one."""
GONE = "it is gone"


class Command(NamedTuple):
    """Low-level action of one step of a plan: where the hand goes, and whether the step begins there or ends."""

    step: Step
    place: str


def describe(clip: MovingScene, changes: int) -> str:
    """Caption of the moment after so many changes: names and places, from top left to bottom right."""
    at = {place: thing for thing, place in enumerate(clip.places_after(changes)) if place}
    parts = [f"a {clip.name(at[place])} at the {place}" for place in PLACES if place in at]
    return " and ".join(parts) if parts else "nothing"


def notes(clip: MovingScene, changes: int | None = None, *, by_place: bool = False) -> str:
    """Key words of ``clip``: what went where, in order, then what stood where; of one moment the latter alone.

    Things come in their own order, which no picture shows, or ``by_place``, from top left to bottom right.
    """
    at = clip.places_after(changes or 0)
    standing = [thing for thing, place in enumerate(at) if place]
    if by_place:
        standing.sort(key=lambda thing: PLACES.index(at[thing]))
    things = [f"{clip.name(thing)} {at[thing]}" for thing in standing]
    moved = (
        [] if changes is not None else [f"{clip.name(c.thing)} {c.before} {c.after or 'gone'}" for c in clip.changes]
    )
    return f"{', '.join(moved)}; {', '.join(things)}" if moved else ", ".join(things)


def questions(clip: MovingScene) -> Iterator[tuple[str, str]]:
    """Questions about a clip, each with its answer."""
    last, names = clip.places_after(len(clip.changes)), [clip.name(index) for index in range(len(clip.things))]
    for name, start, end in zip(names, clip.places, last, strict=True):
        yield f"where was the {name} at the start", start
        yield f"where is the {name} at the end", end or GONE
    yield "which thing was touched first", names[clip.changes[0].thing]
    yield "which thing was touched last", names[clip.changes[-1].thing]
    yield "how many things were touched", str(len({change.thing for change in clip.changes}))


def commands(clip: MovingScene, wanted: str) -> list[Command]:
    """Steps that carry out what is ``wanted`` (a key of INSTRUCTIONS), each with the place where it happens."""
    return [command for change in _changes(clip, wanted) for command in _of_change(clip, change)]


def plan(clip: MovingScene, wanted: str) -> Plan:
    """Plan that carries out what is ``wanted`` (a key of INSTRUCTIONS), first in words."""
    words = ", then ".join(_in_words(clip, change) for change in _changes(clip, wanted))
    return Plan(tuple(command.step for command in commands(clip, wanted)), f"plan: {words}.")


def _changes(clip: MovingScene, wanted: str) -> list[Change]:
    """Changes that are to be made, in order."""
    if wanted == "undo":
        return [Change(change.thing, change.after, change.before) for change in reversed(clip.changes)]
    return list(clip.changes[-1:] if wanted == "last" else clip.changes)


def _of_change(clip: MovingScene, change: Change) -> list[Command]:
    name = clip.name(change.thing)
    if not change.before:
        return [Command(Step("bring", (name, change.after)), change.after)]
    if not change.after:
        return [Command(Step("remove", (name,)), change.before)]
    picked = Command(Step("pick", (name,)), change.before)
    return [picked, Command(Step("put", (name, change.after)), change.after)]


def _in_words(clip: MovingScene, change: Change) -> str:
    name = clip.name(change.thing)
    if not change.before:
        return f"bring the {name} back to the {change.after}"
    return f"move the {name} to the {change.after}" if change.after else f"take the {name} away"
