"""Benchmark scripts at tiny sizes: table and JSON come out, variants compute the same, the limit is a limit."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import generate, train_step, user_prefixes, users
from benchmarks.lib import flops, prefix_aac_case, random_gpt2, timing
from benchmarks.lib.compare_gradients import GradientComparison
from benchmarks.lib.named_model import one_token_words
from benchmarks.lib.train_variants import shared_prefix_loss
from benchmarks.lib.workload import LONGEST, CaptionBatch, draw_workload
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.fast.fused_layer import FusedLayer
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.prefix_aac import PrefixAAC
from mmprefix.mappers.transformer import Transformer
from mmprefix.types import Features
from tiny.decoders import save_decoder

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--layers", "2", "--width", "64", "--vocab", "300", "--prefix-length", "4", "--repeat", "2"]


@pytest.fixture(autouse=True)
def own_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give back the number of threads, which a script sets for the whole process; nothing is downloaded."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("mapper", ["mlp", "transformer", "prefix_aac"])
def test_train_step(mapper: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "step.json"
    sizes = ["--mapper", mapper, "--batch", "10", "--features", "16", "--words", "200", "--pool", "3"]
    results = train_step.main([*TINY, *sizes, "--json", str(file)])
    assert json.loads(file.read_text()) == results
    printed = capsys.readouterr().out
    rows = {row["variant"]: row for row in results["variants"]}
    single = [row for row in rows.values() if row["steps"] == 1]
    pool = [row for row in rows.values() if row["steps"] == 3]
    for name, row in rows.items():
        line = next(line for line in printed.splitlines() if line.startswith(f"| {name} "))
        assert f" {row['ratio']:.2f} " in line
        assert len(row["cpu_s"]) == len(row["wall_s"]) == 2
        assert min(row["cpu_s"]) <= row["cpu_median"] <= max(row["cpu_s"])
        assert row["loss_error"] <= 2e-6
        assert row["gradient_error"] <= 5e-6
    ours, unshared, full_logits, *naive = single
    for row in (unshared, full_logits, *naive):
        assert row["loss"] == pytest.approx(ours["loss"], rel=2e-6)
        assert row["cpu_median"] / ours["cpu_median"] == row["ratio"]
        assert row["fraction_of_limit"] < 1
    for row in naive:
        assert row["gradient_error"] > 0  # really another computation
        assert ours["padding"] < unshared["padding"] < row["padding"] < 1
    assert len(naive) == (2 if mapper == "prefix_aac" else 1)
    assert len(pool) == (0 if mapper == "prefix_aac" else 2)  # batch normalisation ties a batch's inputs together
    if pool:
        bucketed, shuffled = pool
        assert shuffled["loss"] == pytest.approx(bucketed["loss"], rel=2e-6)
        assert bucketed["padding"] < shuffled["padding"]
    prefix = 26 if mapper == "prefix_aac" else 4
    assert results["batch"] == {"inputs": 2, "captions": 10, "tokens": results["batch"]["tokens"], "prefix": prefix}


@pytest.mark.slow
def test_train_step_of_a_named_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A grouped-query model with a tokenizer of subwords, against Transformers' model of it."""
    folder = save_decoder(tmp_path, "llama")
    sizes = ["--mapper", "mlp", "--prefix-length", "3", "--batch", "10", "--features", "16", "--repeat", "1"]
    results = train_step.main(["--model", folder, *sizes, "--pool", "0"])
    ours, _, _, theirs, naive = results["variants"]
    assert theirs["variant"] == "Hugging Face: a row a caption"
    for row in (theirs, naive):
        assert row["loss"] == pytest.approx(ours["loss"], rel=2e-6)
        assert 0 < row["gradient_error"] <= 5e-6
    assert ours["padding"] < theirs["padding"] < naive["padding"]
    assert ours["fraction_of_limit"] < 1
    assert f"{folder}, 10 captions of 2 inputs" in capsys.readouterr().out


def test_captions_of_a_named_decoder_have_a_token_a_word(tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path, "llama"))
    words = one_token_words(decoder, 1000)
    assert len(words) > 10
    assert one_token_words(decoder, 3) == words[:3]
    texts = [[" ".join(f"w{n}" for n in (0, len(words) - 1, 2)), "w1"]]
    batch = CaptionBatch(Features(torch.zeros(1, 0, 0), torch.zeros(1, 0), torch.zeros(1, 1)), texts).worded(words)
    assert batch.texts == [[f"{words[0]} {words[-1]} {words[2]}", words[1]]]
    assert batch.lengths == [[len(decoder.codec.target_ids("", text)) for text in batch.texts[0]]]


def test_more_words_than_tokens_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_step.main([*TINY, "--mapper", "prefix_aac", "--words", "301"])
    assert "--words 301: each is a token, but --vocab is 300; give fewer" in capsys.readouterr().err


def test_prefix_aac_is_what_its_recipe_trains() -> None:
    recipe = yaml.safe_load((ROOT / "recipes" / "prefix_aac_audiocaps.yaml").read_text(encoding="utf-8"))
    mapper = prefix_aac_case.mapper(64)
    options = recipe["model"]["branches"]["audio"]["mapper"]["init_args"]["mappers"]
    assert [line["init_args"]["reads"] for line in options] == ["frames", "summary"]
    for part, line, left_out in zip(mapper.mappers, options, [{"dropout": 0.0}, {}], strict=True):
        assert part.training
        assert part.init_args == PrefixAAC(Sizes(4096, 527, 64), **line["init_args"]).init_args | left_out
    assert recipe["model"]["decoder"]["class_path"] == "mmprefix.decoders.WordDecoder"
    features = prefix_aac_case.features(np.random.default_rng(0), 2)
    assert features.frames.shape == (2, 15, 4096)
    assert features.frames.min() == 0
    assert features.mask.all()
    assert features.pooled.shape == (2, 527)
    assert 0 < features.pooled.min() < features.pooled.max() < 1


def test_a_variant_that_computes_something_else_is_named() -> None:
    """However small the gradients of the part that differs are beside those of another."""
    mapper, head = MLP(Sizes(0, 3, 4), length=1), torch.nn.Linear(4, 5, bias=False)
    comparison = GradientComparison([mapper, head], {"right": "right", "wrong": "right"})
    for parameter in mapper.parameters():
        parameter.grad = torch.ones_like(parameter)
    head.weight.grad = torch.full_like(head.weight, 1e6)
    comparison.record("right", 2.0)
    mapper.get_parameter("model.0.bias").grad = torch.full((2,), 1.001)
    comparison.record("wrong", 2.0)
    with pytest.raises(SystemExit, match=r"'wrong': relative error of the loss 0.0e\+00, of the gradients 3.2e-04"):
        comparison.check()


def test_users_are_loaded_opened_and_removed(tmp_path: Path) -> None:
    options = ["--users", "30", "--loads", "40", "--repeat", "2", "--json", str(tmp_path / "users.json")]
    results = users.main(options)
    assert json.loads((tmp_path / "users.json").read_text())["kinds"].keys() == users.KINDS.keys()
    for figures in results["kinds"].values():
        assert len(figures["load_ms"]) == 40
        assert len(figures["remove_ms"]) == 2
        assert figures["file_bytes_a_user"] > figures["prefix_bytes"]
    assert results["kinds"]["soft"]["prefix_bytes"] == 10 * 768 * 2


def test_prefixes_of_many_users_are_used_and_trained(tmp_path: Path) -> None:
    options = ["--layers", "1", "--width", "64", "--vocab", "300", "--users", "5", "--stored", "6", "--batch", "4"]
    results = user_prefixes.main([*options, "--tokens", "2", "--repeat", "2", "--json", str(tmp_path / "p.json")])
    assert json.loads((tmp_path / "p.json").read_text())["kinds"].keys() == user_prefixes.KINDS.keys()
    for kind in ("soft", "deep"):
        for what in ("use", "training"):
            for times in results["kinds"][kind][what].values():
                assert len(times["cpu_s"]) == 2
    assert results["kinds"]["soft"]["bytes"] > 10 * 64 * 4


MAPPERS = {  # a prefix of one position has nothing to prune
    "mlp": lambda length: MLP(Sizes(0, 8, 128), length=length),
    "transformer": lambda length: Transformer(Sizes(0, 8, 128), length=length, clip_length=1, layers=1),
    "prefix_aac": lambda length: PrefixAAC(Sizes(4096, 527, 128), length=length, layers=1),
}


@pytest.mark.parametrize("name", MAPPERS)
def test_the_limit_is_what_an_unpadded_step_computes(name: str, tmp_path: Path) -> None:
    """Counted by torch, with and without the products of attention.

    Twenty inputs: torch's counter does not know the kernel that multiplies fewer than 49 rows.
    """
    size = random_gpt2.Gpt2Size(2, 128, 300)
    case = train_step.CASES[name](Namespace(vocab=300, words=200, features=8, prefix_length=1))
    decoder = case.decoder(random_gpt2.save_gpt2(tmp_path, size))
    features = case.features(np.random.default_rng(0), 20)
    batch = CaptionBatch(features, [["w1 w2 w3 w4 w5 w6", "w7 w8 w9"]] * 20)
    mapper = MAPPERS[name](1)

    def counted() -> int:
        with FlopCounterMode(display=False) as counter:
            shared_prefix_loss(mapper, decoder)(batch).backward()
        return counter.get_total_flops()

    least = flops.step_operations(flops.gpt2_matrices(size), mapper, decoder, batch)
    assert 0.98 < counted() / least < 1.01  # the fused attention is not counted, a last position's keys are made twice
    with sdpa_kernel(SDPBackend.MATH):
        assert 1 < counted() / least < 1.03  # here attention is, with what its mask hides
    longer = flops.step_operations(flops.gpt2_matrices(size), MAPPERS[name](9), decoder, batch)
    assert longer > least


def test_the_limit_leaves_out_what_no_caption_reads_of_a_prefix(tmp_path: Path) -> None:
    """In the last layer of 26 positions of Prefix-AAC all but keys, values and the last; a step leaves it out too."""
    size = random_gpt2.Gpt2Size(2, 128, 300)
    case = train_step.CASES["prefix_aac"](Namespace(words=200))
    mapper, decoder = case.mapper(128), case.decoder(random_gpt2.save_gpt2(tmp_path, size))
    batch = CaptionBatch(case.features(np.random.default_rng(0), 3), [["w1 w2 w3 w4 w5 w6", "w7 w8 w9"]] * 3)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        shared_prefix_loss(mapper, decoder)(batch).backward()
    unread = 2 * 3 * (26 - 1) * 20 * 128**2  # forward and backward, inputs, positions, and all but keys and values
    least = flops.step_operations(flops.gpt2_matrices(size), mapper, decoder, batch)
    assert 1 < counter.get_total_flops() / least < 1.02 < 1 + unread / least


def test_the_limit_counts_a_trained_head_into_its_weights() -> None:
    head, lengths = torch.nn.Linear(3, 5, bias=False), [[4, 2], [1]]
    rows = 2 + 3 + 1  # the first token of each input's captions, and what follows a token
    assert flops.head_operations(head, lengths) == 3 * 2 * rows * 3 * 5
    assert flops.head_operations(head.requires_grad_(False), lengths) == 2 * 2 * rows * 3 * 5


def test_caption_lengths_have_the_documented_distribution() -> None:
    def features(random: np.random.Generator, count: int) -> Features:
        return Features(torch.zeros(count, 0, 0), torch.zeros(count, 0), torch.arange(float(count))[:, None])

    workload = draw_workload(5, 400, 1000, features, pool=10)
    lengths = np.array([n for batch in workload.bucketed for row in batch.lengths for n in row])
    assert lengths.mean() == pytest.approx(12, abs=0.3)
    assert lengths.std() == pytest.approx(3, abs=0.3)
    assert lengths.max() <= LONGEST
    sides = (workload.bucketed, workload.shuffled)
    bucketed, shuffled = ([row for batch in side for row in batch.texts] for side in sides)
    assert sorted(bucketed) == sorted(shuffled)
    median = workload.median
    assert draw_workload(5, 400, 1000, features, pool=10).median.texts == median.texts
    single = median.one_caption_per_input()
    assert len(single.texts) == 400
    assert [text for (text,) in single.texts] == [text for texts in median.texts for text in texts]
    assert torch.equal(single.features.pooled, median.features.pooled.repeat_interleave(5, dim=0))


def test_variants_are_interleaved() -> None:
    calls: list[tuple[str, int]] = []
    names = "abcd"
    times = timing.interleave(
        {name: lambda name=name: name * 2 for name in names},
        3,
        on_result=lambda name, number, result: calls.append((result, number)),
    )
    rounds = [[name for name, number in calls if number == n] for n in range(3)]
    assert all(sorted(turn) == [name * 2 for name in names] for turn in rounds)
    assert [number for _, number in calls] == sorted(number for _, number in calls)
    assert len({tuple(turn) for turn in rounds}) > 1
    assert all(len(times[name].cpu) == 3 for name in names)


@pytest.mark.slow
def test_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "generate.json"
    sizes = ["--batches", "1", "4", "--beams", "3", "1", "--new-tokens", "6", "--naive", "--json", str(file)]
    generate.main([*TINY, *sizes])
    printed = capsys.readouterr().out
    cases = json.loads(file.read_text())["cases"]
    assert [(case["beams"], case["batch"]) for case in cases] == [(3, 1), (3, 4), (1, 1), (1, 4)]
    for case in cases:
        assert case["equal_texts"] == case["batch"]
        assert case["naive_equal"]
        assert ("naive" in case) == ((case["beams"], case["batch"]) == (3, 1))
        assert case["tokens"] == 6 * case["batch"]
        search = "greedy" if case["beams"] == 1 else f"beam {case['beams']}"
        row = next(r for r in printed.splitlines() if r.startswith(f"| {search} |     {case['batch']} |"))
        assert f" {case['ratio']:.2f} " in row
    assert max(case["distinct_texts"] for case in cases) > 1
    assert "ClipCap's own search, beam 3, one input" in printed


@pytest.mark.slow
def test_generate_with_a_named_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_decoder(tmp_path, "llama", sharp=2.0)
    sizes = ["--batches", "2", "--beams", "3", "1", "--new-tokens", "5", "--prefix-length", "3", "--repeat", "1"]
    results = generate.main(["--model", folder, *sizes, "--without", "fused_layer"])
    assert [case["equal_texts"] for case in results["cases"]] == [2, 2]
    assert all(len(case["without"]["cpu_s"]) == 1 for case in results["cases"])
    printed = capsys.readouterr().out
    assert f"{folder}, prefix 3, 5 new tokens" in printed
    assert "Without fused_layer, beam 3, batch 2: " in printed


def test_a_decoder_is_without_the_fast_path_that_was_named_alone(tmp_path: Path) -> None:
    options = Namespace(model=save_decoder(tmp_path, "llama"), dtype="float32", device="cpu")
    fused = {path: _fused(generate.load_without(path, options, "")) for path in ("gelu", "fused_layer")}
    assert fused == {"gelu": True, "fused_layer": False}
    assert _fused(CausalDecoder(options.model))  # the switch is as it was


def _fused(decoder: CausalDecoder) -> bool:
    layers: Any = decoder.language_model.stack
    return any(isinstance(vars(layer).get("forward"), FusedLayer) for layer in layers.layers)


@pytest.mark.parametrize("shared", [2, 4])
def test_the_matrices_of_a_named_decoder_are_those_of_its_layers(shared: int) -> None:
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=shared,
    )
    lm = LlamaForCausalLM(config)
    matrices = flops.llama_matrices(config)
    linear = [module.weight.numel() for module in lm.modules() if isinstance(module, torch.nn.Linear)]
    attention: Any = lm.model.layers[0].self_attn
    assert matrices.weights == sum(linear)
    assert matrices.keys_values == attention.k_proj.weight.numel() + attention.v_proj.weight.numel()
    assert matrices.attended == attention.q_proj.out_features
    assert matrices.queries == attention.q_proj.weight.numel()


FORKED_STORE = """
import multiprocessing, sys
from pathlib import Path
from benchmarks import feature_store
forking, anew = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
multiprocessing.get_context = lambda method: anew if method == "anew" else forking
wide = Path(sys.argv[1])
feature_store.fill_store(wide, "31 x 2048", 2, 2)
assert feature_store.memory_of_readers(wide, "31 x 2048", 1, "anew") > 0
feature_store.main(sys.argv[2:])
"""


@pytest.mark.slow
def test_feature_store(tmp_path: Path) -> None:
    """Processes are forked, but for one reader: to start them anew takes seconds.

    A new process forks them: this one has imported all that other tests use, and is slow to fork.
    """
    file = tmp_path / "store.json"
    sizes = ["--entries", "400", "--wide", "30", "--shard", "50", "--workers", "2", "--repeat", "1"]
    words = [sys.executable, "-c", FORKED_STORE, str(tmp_path / "wide"), *sizes, "--json", str(file)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results, printed = json.loads(file.read_text()), done.stdout
    for kind, entries in (("512", 400), ("31 x 2048", 30)):
        figures = results["kinds"][kind]
        assert figures["entries"] == entries
        assert min(figures["open_ms"]) > 0
        assert all(value > 0 for value in figures["memory_mb"].values())
        for name, times in figures["read_us"].items():
            line = next(line for line in printed.splitlines() if line.startswith(f"| {kind} ") and f" {name} |" in line)
            assert f" {times['median']:.1f} " in line
            assert 0 < times["min"] <= times["median"] <= times["max"]
