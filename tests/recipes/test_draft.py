"""The program that trains a drafter: what it writes loads again, drafts for its decoder alone, and changes no text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmprefix.decoders import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.recipes.draft.train import main, measure
from mmprefix.training.methods.drafters import load_drafter, save_drafter
from tiny.decoders import save_decoder

PLAN = {"prompts": 8, "held": 3, "steps": 60, "batch_size": 1, "groups": 4, "length": 4, "new_tokens": 12}


def test_it_trains_saves_and_writes_the_texts_of_greedy_search(tmp_path: Path) -> None:
    out = tmp_path / "drafter"
    figures = main(["--plan", json.dumps(PLAN), "--out", str(out)])
    assert figures["texts"] == figures["equal"] == 3
    assert figures["passes"] < figures["tokens"]
    decoder = CausalDecoder("mmprefix:world/frozen/decoder").eval()
    drafter = load_drafter(out, decoder)
    assert drafter.masks.shape == (3, decoder.width)
    prompts = [" large red circle small blue square row\n"]
    again = measure(drafter, decoder, prompts, GenerateOptions(max_new_tokens=12))
    save_drafter(tmp_path / "copy", drafter, decoder)
    copy = load_drafter(tmp_path / "copy", decoder)
    assert all(torch.equal(tensor, drafter.state_dict()[name]) for name, tensor in copy.state_dict().items())
    assert measure(copy, decoder, prompts, GenerateOptions(max_new_tokens=12)) == again
    other = CausalDecoder(save_decoder(tmp_path / "gpt2"))
    with pytest.raises(InputError, match="drafts for the decoder"):
        load_drafter(out, other)
    with pytest.raises(InputError, match="is no folder of a drafter"):
        load_drafter(tmp_path, decoder)


def test_prompts_are_the_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a dog\n\nthe cat runs\nsome rain\n")
    plan = PLAN | {"held": 1, "steps": 1, "new_tokens": 6}
    folder = save_decoder(tmp_path / "gpt2")
    words = ["--decoder", str(folder), "--prompts", str(file), "--out", str(tmp_path / "out")]
    figures = main([*words, "--plan", json.dumps(plan)])
    assert figures["texts"] == figures["equal"] == 1
    with pytest.raises(InputError, match="has 3 lines, of which 3 are held out"):
        main([*words, "--plan", json.dumps(plan | {"held": 3})])
