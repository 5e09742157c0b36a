"""Teacher's values in a file: read in place of a run of the teacher, and only where the same was asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmprefix.decoders import CausalDecoder
from mmprefix.distillation import Cartridge, DistilOptions, distil, teacher_file
from mmprefix.distillation.teacher import Expected, Text, ask_teacher
from mmprefix.errors import InputError
from tiny import decoders as tiny_decoders

pytestmark = pytest.mark.numeric
CONTEXT = "some rain falls on the old roof, and a bell rings twice. the cat runs"
TEXTS = ["a dog barks loudly.", ("; the", "cat runs over a green hill"), (" and", "the old roof")]
OTHER = CONTEXT.replace("cat", "dog")


def decoder_at(folder: Path, sharp: float = 3.0, **options: Any) -> CausalDecoder:
    if not folder.exists():
        tiny_decoders.save_decoder(folder, "llama", sharp=sharp)
    return CausalDecoder(str(folder), **options)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return decoder_at(tmp_path_factory.mktemp("teacher") / "llama")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Context of each run of the teacher."""
    contexts: list[str] = []

    def counted(decoder: CausalDecoder, context: str, texts: Sequence[Text], **options: Any) -> list[Expected]:
        contexts.append(context)
        return ask_teacher(decoder, context, texts, **options)

    monkeypatch.setattr(teacher_file, "ask_teacher", counted)
    return contexts


def same(one: Cartridge, other: Cartridge) -> bool:
    return torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)


def test_the_teacher_runs_once_for_all_distillations(decoder: CausalDecoder, runs: list[str], tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    plain = distil(decoder, CONTEXT, TEXTS, positions=4, steps=3)
    assert runs == []
    made = [distil(decoder, CONTEXT, TEXTS, positions=4, steps=3, teacher=file) for _ in range(2)]
    distil(decoder, CONTEXT, TEXTS, positions=2, start="text", steps=1, teacher=str(file))
    assert runs == [CONTEXT]
    assert same(made[0], plain)
    assert same(made[1], plain)  # to the bit
    tensors = load_file(file)
    assert tensors["tokens"].shape == (int(tensors["counts"].sum()), 20)


def test_other_questions_are_not_answered_with_old_values(
    decoder: CausalDecoder, runs: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "teacher.safetensors"
    distil(decoder, CONTEXT, TEXTS, positions=4, steps=3, teacher=file)
    changed = distil(decoder, OTHER, TEXTS, positions=4, steps=3, teacher=file)
    assert runs == [CONTEXT, OTHER]
    assert same(changed, distil(decoder, OTHER, TEXTS, positions=4, steps=3))
    distil(decoder, OTHER, TEXTS, positions=4, steps=1, teacher=file)  # the file is that of the new context now
    assert len(runs) == 2
    distil(decoder, OTHER, TEXTS[:2], positions=4, steps=1, teacher=file)
    distil(decoder, OTHER, [TEXTS[0], ("; ", "the cat")], positions=4, steps=1, teacher=file)
    distil(decoder, OTHER, TEXTS, positions=4, steps=1, teacher=file, options=DistilOptions(top=5))
    assert len(runs) == 5
    others = [decoder_at(tmp_path / "llama", sharp=1.0), decoder_at(tmp_path / "llama", lora_rank=2)]
    for other in others:
        distil(other, OTHER, TEXTS, positions=4, steps=1, teacher=file)
        distil(other, OTHER, TEXTS, positions=4, steps=1, teacher=file)
    assert len(runs) == 7
    with torch.no_grad():
        for parameter in others[1].parameters():
            parameter.add_(0.01 * parameter.requires_grad)  # as a training moves LoRA
    distil(others[1], OTHER, TEXTS, positions=4, steps=1, teacher=file)
    assert len(runs) == 8


def test_another_file_is_refused_and_stays(decoder: CausalDecoder, runs: list[str], tmp_path: Path) -> None:
    cartridge, text = tmp_path / "own.safetensors", tmp_path / "notes.txt"
    distil(decoder, CONTEXT, [], positions=4, steps=0).save(cartridge)
    text.write_text("my notes")
    for file, message in ((cartridge, "holds something else than a teacher's values"), (text, "cannot be read")):
        before = file.read_bytes()
        with pytest.raises(InputError, match=f"teacher .*{file.name}.*{message}"):
            distil(decoder, CONTEXT, TEXTS, positions=4, steps=1, teacher=file)
        assert file.read_bytes() == before
    with pytest.raises(InputError, match="none"):
        distil(decoder, CONTEXT, TEXTS, positions=4, steps=1, teacher=tmp_path / "none" / "file.safetensors")
    assert len(runs) <= 1
