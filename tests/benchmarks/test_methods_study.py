"""Study of the methods: seeds, peft's batches, rates of earlier results."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.lib.methods.peft_rows import Rows, batches_of
from benchmarks.lib.methods.runs import best_of, read, with_seed
from benchmarks.studies.methods import rates_of, report
from mmprefix.data.model_inputs import ModelInputs
from mmprefix.decoders import CausalDecoder
from mmprefix.world.manners import MannersData


def test_peft_is_trained_on_the_batches_of_our_own_trainings(tmp_path: Path) -> None:
    base = read("base")
    options = base["data"]["init_args"] | {"scenes": 40}
    data = MannersData(directory=str(tmp_path), seed=3, **options)
    data.prepare_data()
    data.inputs = ModelInputs(load={}, kinds={}, reads_text=True, reads_context=True)
    data.setup("fit")
    own = [[targets[0] for targets in batch.targets] for batch in data.train_dataloader()]
    rows = Rows(tmp_path / "train.jsonl", CausalDecoder(base["model"]["decoder"]["init_args"]["model"]))
    first = batches_of(rows, options["batch_size"], 2, seed=3)[: len(own)]
    assert [[rows.captions[row] for row in batch] for batch in first] == own


def test_a_seed_draws_the_words_of_a_start_and_changes_no_recipe() -> None:
    content = read("prompt_tuning")
    seeded = with_seed(content, 2)
    assert seeded["model"]["prefix"]["init_args"]["start"]["init_args"] == {"most": 5000, "seed": 2}
    assert content == read("prompt_tuning")
    assert with_seed(read("p_tuning_v2"), 2) == read("p_tuning_v2")


def test_the_best_rate_by_validation_runs_with_every_seed() -> None:
    def run(rate: float, seed: int) -> dict[str, float]:
        sizes = {"memory": 1.0, "numbers": 2, "bytes": 8, "generation": 0.5}
        return {"val": abs(rate - 0.2), "loss": rate + seed, "exact_match": 0, "cider_d": 0, "seconds": 1, **sizes}

    result = best_of(run, [0.1, 0.2, 0.4], [0, 1])
    assert result["rate"] == 0.2
    assert result["loss"] == [0.2, 1.2]
    assert result["grid"] == pytest.approx({"0.1": 0.1, "0.2": 0.0, "0.4": 0.2})
    assert "0.700 ± 0.500" in report({"lopt": result})


def test_known_rates_are_not_searched_again(tmp_path: Path) -> None:
    file = tmp_path / "known.json"
    file.write_text(json.dumps({"methods": {"lopt": {"rate": 0.16}}, "like_length": {"mpt": {"rate": 0.3}}}))
    options = Namespace(known=file, factors=[1.0, 4.0])
    assert rates_of("lopt", options) == [0.16]
    assert rates_of("mpt", options) == [0.3]
    assert rates_of("peft_lora", options) == [1e-3, 4e-3]
    assert rates_of("full_fine_tuning", Namespace(known=None, factors=[1.0])) == [1e-4]
