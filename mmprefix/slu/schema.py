"""Schema: intents and slots that an utterance may have, described in words, with the questions about them.

Li, Keizer and Doddipatla 2024 (https://arxiv.org/abs/2406.15209) recast spoken language understanding as questions and
answers. Their wording is not public, so every question, answer and template is a setting of the schema file; the
defaults in this file and the schemas in ``recipes/schemas`` are our own choice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmprefix.errors import InputError, did_you_mean
from mmprefix.slu.schema_file import SchemaSection, read_options

SEPARATOR = ", "  # between several values of one slot, in an answer
INTENT_QUESTIONS = ("what does the speaker want?", "what is the speaker asking for?", "what should be done?")
INTENT_TEMPLATES = ("does the speaker want to {description}?", "is the speaker asking to {description}?")
SLOT_TEMPLATES = ("what is mentioned as {description}?", "which words say {description}?")

_TOP = ("name", "intent", "templates", "intents", "slots", "none", "yes", "no", "split_intents")
_INTENT = ("description", "answer", "questions", "examples", "scenario", "action", "slots")
_SLOT = ("description", "questions", "examples", "values")
_SHIPPED = Path(__file__).parents[1] / "recipes" / "schemas"
_WORD_ENDS = re.compile(r"[_\-\s]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True)
class Label:
    """Intent or slot, described in words.

    ``answer`` is the text that names an intent. A slot with ``values`` takes only these, a slot without any text. An
    intent with ``slots`` has only these (None: all); ``scenario`` and ``action`` are its two parts in SLURP's records.
    """

    name: str
    description: str
    answer: str
    questions: tuple[str, ...]
    examples: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    scenario: str | None = None
    action: str | None = None
    slots: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Schema:
    """Intents and slots of a domain, and the answers for an absent slot, for yes and for no.

    Raises InputError where an answer would be ambiguous: two intents with the same answer, two labels with the same
    question, a value that means absence.
    """

    name: str
    intent_questions: tuple[str, ...]
    intents: dict[str, Label]
    slots: dict[str, Label]
    none: str = "none"
    yes: str = "yes"
    no: str = "no"

    def __post_init__(self) -> None:
        if not self.intents and not self.slots:
            raise InputError(f"schema {self.name} has neither intents nor slots")
        if fold(self.yes) == fold(self.no):
            raise InputError(f"yes and no: both are {self.yes!r}; they must differ")
        answers = ((f"intents.{label.name}", label.answer) for label in self.intents.values())
        _refuse_duplicates(answers, "answer", "they could not be told apart")
        _refuse_duplicates(self._questions(), "question", "one question would have two answers")
        for label in self.slots.values():
            _check_values(label, self.none)
        for label in self.intents.values():
            for slot in label.slots or ():
                if slot not in self.slots:
                    raise InputError(f"intents.{label.name}.slots: no slot {slot!r}{known(slot, self.slots)}")

    def only(self, intents: Collection[str] | None = None, slots: Collection[str] | None = None) -> Schema:
        """Schema restricted to these labels (None: all). Raises InputError for an unknown name."""
        kept = _select(self.intents, intents, "intent", self.name)
        slots = _select(self.slots, slots, "slot", self.name)
        for name, label in kept.items():
            if label.slots is not None:
                kept[name] = replace(label, slots=tuple(slot for slot in label.slots if slot in slots))
        return replace(self, intents=kept, slots=slots)

    def slots_of(self, intent: str | None) -> Collection[str]:
        """Slots that ``intent`` may have: all, where it has no list of slots or is not in the schema."""
        label = None if intent is None else self.intents.get(intent)
        return self.slots if label is None or label.slots is None else label.slots

    def _questions(self) -> Iterator[tuple[str, str]]:
        yield from (("intent", text) for text in self.intent_questions)
        for group, labels in (("intents", self.intents), ("slots", self.slots)):
            yield from ((f"{group}.{label.name}", text) for label in labels.values() for text in label.questions)


def read_schema(source: str | Path | Mapping[str, Any]) -> Schema:
    """Schema from a YAML or JSON file, from the name of a shipped one (``slurp``, ``barista``, ...), or as data.

    Data is the content of a file, as ``portable`` gives it.

    Raises InputError with file, key and value where it cannot be read or contradicts itself.
    """
    if isinstance(source, Mapping):
        return _schema(SchemaSection(source), "schema")
    file = _find(source)
    try:
        return _schema(read_options(file), file.stem)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def shipped_schemas() -> list[str]:
    """Names of the schemas in ``recipes/schemas``."""
    return sorted(file.stem for file in _SHIPPED.glob("*.yaml"))


def portable(source: str | Path, *, slots: bool = True) -> str | dict[str, Any]:
    """Form of a schema for a saved model, which may move: the name of a shipped one, otherwise the file's content.

    Without ``slots`` it is the content with intents alone.
    """
    file = _find(source)
    if slots and file.parent == _SHIPPED:
        return file.stem
    options = read_options(file)
    content: dict[str, Any] = {"name": file.stem, **options.values}
    if not slots:
        content.pop("slots", None)
        intents = {name: {**label.values} for name, label in options.each("intents")}
        content["intents"] = {name: {k: v for k, v in label.items() if k != "slots"} for name, label in intents.items()}
    return content


def fold(text: str) -> str:
    """Normalise ``text`` for comparing answers: no case, single spaces, no full stop at the end."""
    return " ".join(text.casefold().split()).rstrip(". ")


def known(wrong: str, names: Iterable[str]) -> str:
    """Advice in a message about a name that is not in ``names``: the most similar one, otherwise the first eight."""
    names = list(names)
    more = ", ..." if len(names) > 8 else ""
    return did_you_mean(wrong, names) or (f"; choose from {', '.join(names[:8])}{more}" if names else "")


# ------------------------------------------------------------------------------------------------- contradictions


def _refuse_duplicates(texts: Iterable[tuple[str, str]], kind: str, why: str) -> None:
    """Raise InputError where two owners have the same text. ``texts`` are pairs of owner and text."""
    owners: dict[str, str] = {}
    for owner, text in texts:
        first = owners.setdefault(fold(text), owner)
        if first != owner:
            raise InputError(f"{first} and {owner}: the same {kind} {text!r}; {why}")


def _check_values(label: Label, none: str) -> None:
    seen = set[str]()
    for value in label.values:
        fault = None
        if fold(value) in ("", fold(none)):
            fault = f"{value!r} would mean that the slot is absent; change the value, or the option none"
        elif SEPARATOR in value:
            fault = f"{value!r} looks like several values, since it contains {SEPARATOR!r}"
        elif fold(value) in seen:
            fault = f"{value!r} is listed twice"
        if fault:
            raise InputError(f"slots.{label.name}.values: {fault}")
        seen.add(fold(value))


def _select(labels: dict[str, Label], names: Collection[str] | None, kind: str, schema: str) -> dict[str, Label]:
    for name in names or ():
        if name not in labels:
            raise InputError(f"schema {schema}: no {kind} {name!r}{known(name, labels)}")
    return {name: label for name, label in labels.items() if names is None or name in names}


# --------------------------------------------------------------------------------------------------- reading a file


def _find(source: str | Path) -> Path:
    if Path(source).is_file():
        return Path(source)
    shipped = {file.stem: file for file in sorted(_SHIPPED.glob("*.yaml"))}
    name = str(source).removesuffix(".yaml")
    if name not in shipped:
        raise InputError(f"schema {source}: no such file; shipped schemas: {', '.join(shipped)}")
    return shipped[name]


def _schema(options: SchemaSection, stem: str) -> Schema:
    templates = options.allow(_TOP).inside("templates").allow(("intents", "slots"))
    about_intents = _templates(templates, "intents", INTENT_TEMPLATES)
    about_slots = _templates(templates, "slots", SLOT_TEMPLATES)
    split = options.flag("split_intents")
    intents, slots = options.each("intents"), options.each("slots")
    return Schema(
        name=options.text("name", stem),
        intent_questions=options.inside("intent").allow(("questions",)).texts("questions", INTENT_QUESTIONS),
        intents={name: _intent(name, inside.allow(_INTENT), about_intents, split) for name, inside in intents},
        slots={name: _label(name, inside.allow(_SLOT), about_slots) for name, inside in slots},
        none=options.text("none", "none"),
        yes=options.text("yes", "yes"),
        no=options.text("no", "no"),
    )


def _templates(options: SchemaSection, group: str, default: tuple[str, ...]) -> tuple[str, ...]:
    templates = options.texts(group, default)
    for template in templates:
        if "{description}" not in template:
            raise InputError(f"templates.{group}: {template!r} lacks {{description}}, so all labels would share it")
    return templates


def _label(name: str, options: SchemaSection, templates: tuple[str, ...]) -> Label:
    description = options.text("description", _words(name))
    questions = tuple(template.replace("{description}", description) for template in templates)
    return Label(
        name=name,
        description=description,
        answer=options.text("answer", description),
        questions=options.texts("questions", questions),
        examples=options.texts("examples"),
        values=options.texts("values"),
    )


def _intent(name: str, options: SchemaSection, templates: tuple[str, ...], split: bool) -> Label:
    scenario, action = _parts(name, options, split)
    slots = options.texts("slots") if "slots" in options else None
    return replace(_label(name, options, templates), scenario=scenario, action=action, slots=slots)


def _parts(name: str, options: SchemaSection, split: bool) -> tuple[str | None, str | None]:
    """Scenario and action: those of the file, or the name split at its first underscore, or neither."""
    keys = [key for key in ("scenario", "action") if key in options]
    if len(keys) == 1:
        raise InputError(f"{options.place}{keys[0]}: give both scenario and action, or neither")
    if keys:
        return options.text("scenario", ""), options.text("action", "")
    scenario, _, action = name.partition("_")
    if split and not (scenario and action):
        raise InputError(f"{options.place[:-1]}: split_intents: nothing to split at; give scenario and action")
    return (scenario, action) if split else (None, None)


def _words(name: str) -> str:
    """Words of a label's name: ``numberOfShots`` and ``number_of_shots`` are "number of shots"."""
    return " ".join(word for word in _WORD_ENDS.split(name) if word).lower() or name
