"""Users' numbers out of histories: behind what all users share, short and long histories, training in place."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mmprefix.data.collate import collate_inputs
from mmprefix.decoders import CausalDecoder
from mmprefix.distillation import user_numbers as user_numbers_file
from mmprefix.distillation.student import Start
from mmprefix.distillation.teacher import Expected, ask_teacher, text_logits
from mmprefix.distillation.user_numbers import HistoryOptions, joined_history, newest_tokens, user_numbers
from mmprefix.encoders.user_id import UserId, id_bytes
from mmprefix.errors import InputError
from mmprefix.mappers.aligner import Aligner
from mmprefix.mappers.dept import DecomposedPrompt
from mmprefix.mappers.llama_adapter import LlamaAdapter
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.prompt_gating import PromptGating
from mmprefix.mappers.residual import ResidualPrompt
from mmprefix.mappers.user_prefix import DeepUserPrefix
from mmprefix.model import Branch, PrefixLM
from mmprefix.types import Batch, FeatureRow, Features, Prefix
from tiny import decoders as tiny_decoders

pytestmark = pytest.mark.numeric
HISTORY = ["some rain falls on the old roof,", "and a bell rings twice."]
TARGETS = ["a dog barks", "the cat runs over a green hill"]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    folder = tmp_path_factory.mktemp(request.param)
    return CausalDecoder(tiny_decoders.save_decoder(folder, request.param, sharp=2.0))


def model_of(decoder: CausalDecoder, task: Any = None, **options: Any) -> tuple[PrefixLM, DeepUserPrefix]:
    """Model with nothing but users, and its table, begun as before a training."""
    torch.manual_seed(0)
    model = PrefixLM({"user": Branch(UserId(), partial(DeepUserPrefix, capacity=2, **options))}, decoder, task).eval()
    table = model.mapper("user")
    assert isinstance(table, DeepUserPrefix)
    for part in (model.task_prefix, table):
        if isinstance(part, DeepTable | DeepUserPrefix):
            part.begin(decoder)
    return model, table


def scores(model: PrefixLM, numbers: torch.Tensor, prompt: str) -> list[float]:
    """Log-probabilities of the targets for a user whose numbers come beside the hash, as from a store."""
    inputs = {"user": collate_inputs([FeatureRow(numbers.float(), id_bytes("ann"))])}
    batch = Batch(inputs, [prompt], [TARGETS], [""], ["1"])
    return model.decoder.score(model.prefill(batch), model.prompts(batch), [TARGETS])[0]


def by_prompt(model: PrefixLM, front: Any, text: str) -> list[float]:
    return model.decoder.score(model.decoder.prefill(front), [text], [TARGETS])[0]


@pytest.mark.parametrize("sink", [{"start": HISTORY[0], "frozen": 1}, {"std": 0.2}], ids=["shared sink", "no sink"])
def test_with_a_position_for_each_token_it_is_the_history_in_the_prompt(
    decoder: CausalDecoder, sink: dict[str, Any]
) -> None:
    """Behind a sink that is the history's own first position, which is then not there twice, and without one."""
    model, table = model_of(decoder, length=3, **sink)
    numbers = user_numbers(model, table, HISTORY, HistoryOptions(positions=1000, prompt="\n"))
    count = len(decoder.codec.marked_ids(joined_history(HISTORY, "\n")))
    assert len(numbers) == count - table.frozen
    expected = by_prompt(model, Prefix.empty(1, decoder.width), "\n".join([*HISTORY, ""]))
    assert scores(model, numbers, "\n") == pytest.approx(expected, abs=2e-2)


def test_behind_a_task_prefix_the_first_position_is_left_out_and_keys_are_nearer(tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, "llama", sharp=2.0))
    model, table = model_of(
        decoder, partial(DeepTable, length=5, start="the old roof"), length=2, start="the", frozen=1
    )
    options = HistoryOptions(positions=1000, prompt="\n")
    numbers = user_numbers(model, table, HISTORY, options)
    ids = decoder.codec.marked_ids(joined_history(HISTORY, "\n"))
    prefix = table.split_layers(numbers[None], torch.ones(1, len(numbers), dtype=torch.bool))
    moved = decoder.language_model.key_values(ids, 5)  # task 5 + sink 1: the second token stands at position 6
    assert torch.allclose(prefix.keys, moved.keys[:, :, :, 1:], atol=1e-3)


@pytest.mark.parametrize("start", ["compact", "text"])
@pytest.mark.parametrize("task", [Aligner, LlamaAdapter])
def test_a_task_prefix_beside_the_cache_is_met_by_histories_too(
    decoder: CausalDecoder, task: type[Aligner | LlamaAdapter], start: Start
) -> None:
    """With a position for each token, numbers do what the history in the prompt of that very model does."""
    model, table = model_of(decoder, partial(task, first=0), length=3, start=HISTORY[0], frozen=1)
    prefix: Any = model.task_prefix
    with torch.no_grad():
        prefix.gate.fill_(0.7)
    count = len(decoder.codec.marked_ids(joined_history(HISTORY, "\n")))
    numbers = user_numbers(model, table, HISTORY, HistoryOptions(count - 1, start, prompt="\n"))
    with torch.no_grad():
        front = prefix(Features.empty(1))
        expected = by_prompt(model, front, "\n".join([*HISTORY, ""]))
        plain = by_prompt(model, Prefix.empty(1, decoder.width), "\n".join([*HISTORY, ""]))
    assert scores(model, numbers, "\n") == pytest.approx(expected, abs=2e-2)
    assert max(abs(a - b) for a, b in zip(expected, plain, strict=True)) > 0.06


def test_teacher_and_student_meet_what_stands_beside_the_cache(tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, "llama", sharp=3.0))
    model, table = model_of(decoder, partial(Aligner, first=0), length=3, start="a dog")
    prefix: Any = model.task_prefix
    numbers: list[torch.Tensor] = []
    for gate in (0.0, 0.9):
        with torch.no_grad():
            prefix.gate.fill_(gate)
        numbers.append(user_numbers(model, table, HISTORY, HistoryOptions(4, "random", texts=TARGETS, steps=1)))
    assert not torch.allclose(numbers[0], numbers[1])


@pytest.mark.parametrize("task", [DecomposedPrompt, PromptGating, ResidualPrompt])
def test_embeddings_gates_and_updates_behind_the_users_positions_are_met_as_in_use(
    decoder: CausalDecoder, task: Any
) -> None:
    """With a position for each token, the model in use expects what the teacher of its training did."""
    model, table = model_of(decoder, partial(task, length=2, start="the old roof"), length=3, std=0.2)
    prefix: Any = model.task_prefix
    with torch.no_grad():
        for parameter in prefix.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
    asked: list[dict[str, Any]] = []

    def teacher(*args: Any, **options: Any) -> list[Expected]:
        asked.append(options)
        return ask_teacher(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_numbers_file, "ask_teacher", teacher)
        trained = user_numbers(model, table, HISTORY, HistoryOptions(4, texts=TARGETS, steps=3, prompt="\n"))
    assert not torch.equal(trained, user_numbers(model, table, HISTORY, HistoryOptions(4, prompt="\n")))
    texts = [("\n", text) for text in TARGETS]
    expected = ask_teacher(decoder, joined_history(HISTORY, "\n"), texts, **asked[0])
    plain = ask_teacher(decoder, joined_history(HISTORY, "\n"), texts, front=asked[0]["front"])
    numbers = user_numbers(model, table, HISTORY, HistoryOptions(1000, "text", prompt="\n"))
    inputs = {"user": collate_inputs([FeatureRow(numbers.float(), id_bytes("ann"))] * 2)}
    batch = Batch(inputs, ["\n"] * 2, [[text] for text in TARGETS], ["", ""], ["1", "2"])
    with torch.no_grad():
        rows = text_logits(decoder, model.prefill(batch), model.prompts(batch), [text.ids for text in expected])
    for logits, text, other in zip(rows, expected, plain, strict=True):
        in_use = logits.log_softmax(-1).gather(1, text.tokens.long())
        assert torch.allclose(in_use, text.log_probs, atol=1e-4)
        assert (text.log_probs - other.log_probs).abs().max() > 0.06


@pytest.mark.parametrize("start", ["compact", "text", "random"])
def test_training_moves_a_users_own_positions_towards_the_history(start: Start, tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, "llama", sharp=3.0))
    model, table = model_of(decoder, length=3, start="a dog")
    shared = decoder.key_values("a dog", 1)
    expected = torch.tensor(by_prompt(model, shared, joined_history(HISTORY)))
    errors: list[float] = []
    for steps in (1, 30):
        options = HistoryOptions(4, start, texts=TARGETS, steps=steps)
        numbers = user_numbers(model, table, HISTORY, options)
        assert len(numbers) == 4
        errors.append(float((torch.tensor(scores(model, numbers, "")) - expected).abs().mean()))
    assert errors[1] < errors[0]
    assert torch.equal(table.sink, model_of(decoder, length=3, start="a dog")[1].sink)


def test_short_histories_have_as_many_positions_as_tokens(decoder: CausalDecoder) -> None:
    model, table = model_of(decoder, length=3, start="the cat")
    tokens = len(decoder.codec.marked_ids("a\n"))
    assert len(user_numbers(model, table, ["a", " "])) == tokens - 1
    assert len(user_numbers(model, table, ["a"], HistoryOptions(prompt="\n"))) == 1  # one token has no other
    plain, own = model_of(decoder, length=3)
    assert len(user_numbers(plain, own, ["a"])) == tokens
    assert user_numbers(model, table, HISTORY, HistoryOptions(2)).shape == (2, table.numbers)


def test_of_a_long_history_the_newest_lines_are_read(decoder: CausalDecoder) -> None:
    lines = [f"a dog {number} barks" for number in range(40)]
    text = joined_history(lines)
    newest = newest_tokens(decoder, text)
    assert text.endswith(f"\n{newest}")
    assert newest.startswith("a dog ")
    count = len(decoder.codec.marked_ids(newest))
    assert decoder.max_positions // 4 < count <= decoder.max_positions // 2
    model, table = model_of(decoder, length=3)
    assert torch.equal(user_numbers(model, table, lines), user_numbers(model, table, newest.splitlines()))
    giant = newest_tokens(decoder, "x" * 5000 + " end\n")
    assert giant.endswith("xx end\n")
    assert 0 < len(decoder.codec.marked_ids(giant)) <= decoder.max_positions // 2
    assert newest_tokens(decoder, "a dog\nand a cat\n") == "a dog\nand a cat\n"


def test_options_that_cannot_be_are_refused() -> None:
    for options, message in (
        ({"positions": 0}, "positions 0: give a number from 1 on"),
        ({"steps": 5}, "steps 5: give texts to train on"),
        ({"texts": ["a"]}, "steps 0: give texts to train on and a number of steps"),
        ({"texts": ["a"], "steps": -1}, "steps -1: "),
        ({"start": "random"}, "start random: says nothing before it is trained"),
    ):
        with pytest.raises(InputError, match=message):
            HistoryOptions(**options)  # type: ignore[arg-type]
