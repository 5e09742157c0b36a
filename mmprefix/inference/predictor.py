"""The inference API: load a saved model, give it files or values in memory, get text.

model = mmprefix.load("runs/quickstart/model")
model("dog.wav")                      # one input, one text
model(["a.jpg", "b.jpg"])             # many: batched, in order, equal to one at a time
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast, overload

import torch
from torch import nn

from mmprefix import saved_model
from mmprefix.errors import InputError
from mmprefix.features.neighbours import Neighbours
from mmprefix.generation.options import GenerateOptions
from mmprefix.inference import tasks
from mmprefix.inference.batches.neighbours import neighbour_choice, neighbours_for
from mmprefix.inference.batches.run import run_batched, stream_batched, stream_pieces
from mmprefix.inference.call_options import CallOptions, GenerateOverrides, decoding, refuse_unknown
from mmprefix.inference.inputs import Input, input_kinds
from mmprefix.inference.model_card import model_card
from mmprefix.inference.model_folder import upload
from mmprefix.inference.requests import Requests, input_list, inputs_or_contexts, is_one_input
from mmprefix.inference.summary import summarize
from mmprefix.inference.user_prefixes import UserLookup, users_key
from mmprefix.inference.users import context_key
from mmprefix.model import PrefixLM
from mmprefix.saved_model import ModelSettings
from mmprefix.slu.questions import Framing
from mmprefix.slu.schema import Schema
from mmprefix.types import Batch, Candidate
from mmprefix.weights.devices import require_device
from mmprefix.weights.part_places import PACK_LIMIT

if TYPE_CHECKING:
    from mmprefix.users.store import UserStore

Result = TypeVar("Result")


class Predictor:
    """A trained model, ready to write. Calls may come from several threads: nothing is changed by one.

    Inputs are paths, ``archive.zip::member``, bytes, PIL images, ``Waveform(values, rate)`` with NumPy or torch values,
    or dictionaries of those by branch name where a model reads several at once; several of them in a list, a tuple or a
    generator. ``source`` is where the model was loaded from; ``users`` knows texts and prefix of a call's ``user``,
    ``neighbours`` inputs that were described, whose captions choose among the texts that a call finds.
    """

    def __init__(
        self,
        model: PrefixLM,
        settings: ModelSettings = ModelSettings(),  # noqa: B008 (frozen)
        source: str | None = None,
        users: UserStore | None = None,
        *,
        neighbours: Neighbours | None = None,
    ) -> None:
        self.model, self.settings, self.source, self.users = model.eval(), settings, source, users
        self.users_key, self.context_key = users_key(self.model), context_key(self.model)  # before any change of type
        self.neighbours = None if neighbours is None else neighbours_for(model, neighbours)

    def __repr__(self) -> str:
        return summarize(self.model, self.source)

    @property
    def requests(self) -> Requests:
        """Maker of requests from the inputs and keyword arguments of a call."""
        users = None if self.users is None else UserLookup(self.users, self.users_key, self.context_key)
        return Requests(self.model, self.settings, users, self.neighbours)

    @property
    def options(self) -> GenerateOptions:
        """Decoding where a call says nothing else."""
        return self.settings.generate

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Predictor:
        """Moves the model, and makes encoders and decoder compute in ``dtype`` (mappers stay in float32).

        Parts that take no ``dtype`` stay as they are. Raises InputError for a device that this machine does not have.
        """
        encoders = [] if self.neighbours is None else [self.neighbours.encoder]
        nn.ModuleList([self.model, *encoders]).to(None if device is None else require_device(device))
        for part in () if dtype is None else self.model.frozen_parts.values():
            if "dtype" in part.init_args:
                cast(nn.Module, part).to(dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of input (image, audio, signals) by the name that a dictionary of inputs uses."""
        return input_kinds(self.model)

    @overload
    def __call__(self, files: Input, *, num_return: Literal[1] = 1, **overrides: Unpack[GenerateOverrides]) -> str: ...

    @overload
    def __call__(
        self, files: Iterable[Input], *, num_return: Literal[1] = 1, **overrides: Unpack[GenerateOverrides]
    ) -> list[str]: ...

    @overload
    def __call__(
        self, files: Input | Iterable[Input], *, num_return: int = 1, **overrides: Unpack[GenerateOverrides]
    ) -> Any: ...

    def __call__(
        self, files: Input | Iterable[Input], *, num_return: int = 1, **overrides: Unpack[GenerateOverrides]
    ) -> Any:
        """One text an input: a string for one input, a list in the same order for a list or a generator.

        ``overrides``: prompt, context, num_beams, temperature, top_p, length_penalty, seed, batch_size ...; see
        ``GenerateOverrides``. With ``num_return`` above 1 each string becomes a list of so many, the best first (see
        ``candidates``). Raises InputError for an input that cannot be read, by name.
        """
        inputs, several = input_list(files)
        rows = self._candidates(inputs, num_return, overrides)
        texts = [[candidate.text for candidate in row] if num_return > 1 else row[0].text for row in rows]
        return texts if several else texts[0]

    @overload
    def candidates(
        self, files: Input, *, num_return: int = 3, **overrides: Unpack[GenerateOverrides]
    ) -> list[Candidate]: ...

    @overload
    def candidates(
        self, files: Iterable[Input], *, num_return: int = 3, **overrides: Unpack[GenerateOverrides]
    ) -> list[list[Candidate]]: ...

    def candidates(
        self, files: Input | Iterable[Input], *, num_return: int = 3, **overrides: Unpack[GenerateOverrides]
    ) -> list[Candidate] | list[list[Candidate]]:
        """``num_return`` texts and scores, the best first: a list for one input, a list of lists for several.

        They come from beams, or are sampled where a call asks for it. ``overrides``: see ``GenerateOverrides``.
        """
        inputs, several = input_list(files)
        rows = self._candidates(inputs, num_return, overrides)
        return rows if several else rows[0]

    @overload
    def stream(
        self, files: Input, *, num_return: Literal[1] = 1, **overrides: Unpack[GenerateOverrides]
    ) -> Generator[str, None, None]: ...

    @overload
    def stream(
        self, files: Iterable[Input], *, num_return: int = 1, **overrides: Unpack[GenerateOverrides]
    ) -> Iterator[list[Candidate] | InputError]: ...

    def stream(
        self, files: Input | Iterable[Input], *, num_return: int = 1, **overrides: Unpack[GenerateOverrides]
    ) -> Iterator[str] | Iterator[list[Candidate] | InputError]:
        """The text of one input in pieces while it is written; of several, the texts of one after the other.

        One input: all pieces together are the text of a call; with beams a piece comes once all of them agree on it.
        ``close`` ends the search. Raises InputError before the first piece, and for ``num_return`` above 1.

        Several: ``candidates`` of each; of a generator a few batches are held at once. An input that cannot be read has
        its InputError in the place of its texts, and does not end the others.
        """
        options, choice = neighbour_choice(self.neighbours, decoding(self.options, num_return, overrides), overrides)
        requests = self.requests.chosen_by(choice)
        if not is_one_input(files):
            compute = tasks.captioning(self.model, options, choice)
            return stream_batched(self.model, requests.stream(cast("Iterable[Input]", files), overrides), compute)
        if num_return > 1:
            raise InputError(f"stream: num_return={num_return}: one input is streamed as one text; use candidates")
        pieces = tasks.writing(self.model, options, choice)
        return stream_pieces(self.model, requests.of(input_list(files)[0], overrides), pieces)

    def score(
        self, files: Input | Iterable[Input], texts: str | Sequence[str], **options: Unpack[CallOptions]
    ) -> list[float]:
        """The total log-probability of each text for its input (of each text, where one input is given).

        ``options``: prompt, context, batch_size, allow_urls; see ``CallOptions``.
        """

        def compute(batch: Batch) -> list[list[float]]:
            return self.model.decoder.score(self.model.prefill(batch), self.model.prompts(batch), batch.targets)

        refuse_unknown(options, CallOptions)
        inputs, _ = input_list(files)
        targets = [texts] if isinstance(texts, str) else list(texts)
        if len(inputs) != len(targets) and (len(inputs) > 1 or not targets):
            raise InputError(f"score: {len(inputs)} inputs and {len(targets)} texts; give one text an input")
        groups = [targets] if len(inputs) == 1 else [[text] for text in targets]
        return [value for row in self._run(inputs, options, compute, groups) for value in row]

    def choose(
        self, files: Input | Iterable[Input] | None, choices: Sequence[str], **options: Unpack[CallOptions]
    ) -> list[dict[str, float]]:
        """Log-probability of each of ``choices`` for each input, given that it is one; ``options``: ``CallOptions``."""
        return self._answers(files, options, tasks.choosing(self.model, choices))[0]

    def features(self, files: Input | Iterable[Input], **options: Unpack[CallOptions]) -> list[tasks.InputFeatures]:
        """The prefix and the encoders' summaries of each input, for a policy; ``options``: see ``CallOptions``."""
        refuse_unknown(options, CallOptions)
        return self._run(input_list(files)[0], options, tasks.reading(self.model))

    def detect(
        self,
        files: Input | Iterable[Input] | None = None,
        *,
        answers: tuple[str, str] | None = None,
        **options: Unpack[CallOptions],
    ) -> list[float]:
        """For each input the log odds of the first of two answers against the second, by default those trained with.

        An input may have any subset of what the model reads: a dictionary by branch name, a file, None where there is
        a ``context`` alone. ``options``: see ``CallOptions``. InputError where the model has no answers and none come.
        """
        compute = tasks.detecting(self.model, tasks.answers_of(self.settings, answers))
        return self._answers(files, options, compute)[0]

    def understand(
        self,
        files: Input | Iterable[Input] | None = None,
        *,
        schema: str | Path | Schema | None = None,
        framing: Framing | None = None,
        **options: Unpack[CallOptions],
    ) -> Any:
        """Intent and slots: {"intent", "slots", "scores"} for one input, a list of those for a list of inputs.

        ``schema``: a file, a shipped name or a ``Schema``; by default the one trained with. All its questions continue
        one prefill of the input. Questions with choices are answered by the likeliest of them, others freely.
        ``context`` is the transcript, for models that read one. See ``mmprefix.slu.questions.parse_answers`` for the
        result; the score of a free answer is that of the search, by default the mean log-probability of its tokens.
        """
        rows, several = self._answers(
            files, options, tasks.understanding_of(self.model, self.settings, schema, framing)
        )
        return rows if several else rows[0]

    def stream_detect(
        self,
        files: Iterable[Input],
        *,
        answers: tuple[str, str] | None = None,
        **options: Unpack[CallOptions],
    ) -> Iterator[float | InputError]:
        """``detect`` of one input after the other, as they come; errors as in ``stream``."""
        compute = tasks.detecting(self.model, tasks.answers_of(self.settings, answers))
        return stream_batched(self.model, self.requests.for_answers(options).stream(files, options), compute)

    def stream_understand(
        self,
        files: Iterable[Input],
        *,
        schema: str | Path | Schema | None = None,
        framing: Framing | None = None,
        **options: Unpack[CallOptions],
    ) -> Iterator[dict[str, Any] | InputError]:
        """``understand`` of one input after the other, as they come; errors as in ``stream``."""
        compute = tasks.understanding_of(self.model, self.settings, schema, framing)
        return stream_batched(self.model, self.requests.for_answers(options).stream(files, options), compute)

    def save(self, directory: str | Path, *, pack: bool = False, pack_limit: float = PACK_LIMIT) -> None:
        """Writes the model directory: recipe, trained tensors, model card. See ``mmprefix.load``.

        ``pack`` copies frozen parts of up to ``pack_limit`` MB each into it, so that it needs nothing else.
        """
        model = self.model.merged()
        settings, limit = self.settings.portable(), pack_limit if pack else None
        saved_model.save(model, directory, settings, model_card(model, settings), pack_limit=limit)

    def push_to_hub(self, repo: str, private: bool = False) -> str:
        """Saves and uploads to the hub repository ``repo`` (made if it is not there); returns its address."""
        return upload(self.save, repo, private=private)

    def _candidates(self, inputs: list[Input], num_return: int, overrides: GenerateOverrides) -> list[list[Candidate]]:
        options, choice = neighbour_choice(self.neighbours, decoding(self.options, num_return, overrides), overrides)
        request = self.requests.chosen_by(choice).of(inputs, overrides)
        return run_batched(self.model, request, tasks.captioning(self.model, options, choice))

    def _answers(
        self, files: Input | Iterable[Input] | None, options: CallOptions, compute: tasks.Compute[Result]
    ) -> tuple[list[Result], bool]:
        """Result of each input, and whether several were given."""
        requests = self.requests.for_answers(options)
        inputs, several = inputs_or_contexts(files, options.get("context"))
        return run_batched(self.model, requests.of(inputs, options), compute), several

    def _run(
        self, inputs: list[Input], options: CallOptions, compute: tasks.Compute[Result], *targets: list[list[str]]
    ) -> list[Result]:
        return run_batched(self.model, self.requests.of(inputs, options, *targets), compute)
