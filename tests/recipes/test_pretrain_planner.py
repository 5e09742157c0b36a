"""The planner: its program runs, and the shipped one writes the plan that key words determine, of test clips too."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from mmprefix import GenerateOptions, Predictor
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.text import Text
from mmprefix.model import PrefixLM
from mmprefix.plans.score import score_plans
from mmprefix.prompt_template import PromptTemplate
from mmprefix.recipes.pretrain.planner import texts, train_planner
from mmprefix.saved_model import ModelSettings
from mmprefix.world.clip_texts import INSTRUCTIONS, notes, plan
from mmprefix.world.clips import sample_clips


def test_the_program_trains_a_decoder_that_is_read_as_an_encoder_too(tmp_path: Path):
    figures = train_planner(tmp_path / "planner", clips=60, steps=60, rows=4, lr=1e-2, seed=0)
    assert figures["loss"] < 4  # from ln 453 = 6.1
    decoder = CausalDecoder(str(tmp_path / "planner"))
    assert isinstance(LlamaForCausalLM.from_pretrained(tmp_path / "planner"), LlamaForCausalLM)
    assert decoder.width == Text(str(tmp_path / "planner")).dim == 96


def test_it_reads_clips_of_the_training_split_alone():
    known = {notes(clip) for clip in islice(sample_clips(5, "train"), 30)}
    before = {text.partition("\n")[0] for text, _ in texts(30, 5) if "\n" in text}
    assert len(known & before) > 15
    assert all(clip.split == "train" for clip in islice(sample_clips(5, "train"), 30))


def test_the_shipped_planner_writes_what_key_words_say():
    model = PrefixLM({}, CausalDecoder("mmprefix:world/frozen/planner"), wording=PromptTemplate(context="{context}"))
    write = Predictor(model, ModelSettings(generate=GenerateOptions(max_new_tokens=80)))
    clips = [(clip, wanted) for clip in islice(sample_clips(0, "test"), 10) for wanted in INSTRUCTIONS]
    contexts = [f"{notes(clip)}\n{INSTRUCTIONS[wanted][0]}:" for clip, wanted in clips]
    with torch.inference_mode():
        written = write([{} for _ in clips], context=contexts)
    scores = score_plans(written, [str(plan(clip, wanted)) for clip, wanted in clips])
    assert scores.exact > 0.95
