"""Lists of texts that do not fit into an encoder: what is read of them, and under which key its features stand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprefix.data.index import DatasetIndex, RowKey
from mmprefix.data.manifest.example import Example, InputRef
from mmprefix.encoders.keywords import Keywords
from mmprefix.encoders.text import Text
from mmprefix.errors import InputError
from mmprefix.features.keys import feature_key
from mmprefix.features.store import store_description
from mmprefix.media.source import Texts
from mmprefix.parts import to_recipe, with_added_options
from mmprefix.training.feature_cache import encode_requests
from mmprefix.weights.recipe_file import read_recipe
from tiny.texts import save_sentence_encoder

pytestmark = pytest.mark.numeric
SHORT = ("the cat", "a dog")
LONG = ("the cat sleeps", "a dog runs", " ", "the dog", "a cat")  # more than the 8 tokens that are read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sentence_encoder(tmp_path_factory.mktemp("long") / "sentences")


def ids(encoder: Text, *texts: str) -> list[int]:
    return encoder.preprocess(Texts(texts), 0.0, None).tolist()


def test_the_newest_texts_that_fit_together_are_read_whole(folder: Path) -> None:
    encoder = Text(str(folder))
    assert ids(encoder, *LONG) == ids(encoder, "the dog. a cat")
    assert len(ids(encoder, *LONG)) == 7  # with both marks; "runs" alone would fit, its text does not
    assert ids(encoder, *SHORT) == ids(encoder, "the cat. a dog")
    assert ids(encoder, *LONG, "dog " * 30) == ids(encoder, "dog " * 30) == [2, *[6] * 6, 3]  # alone too long
    assert ids(encoder, "the " * 3 + "dog " * 30)[1:4] == [10] * 3  # one text: its beginning


def test_no_more_of_a_history_of_thousands_is_tokenized_than_may_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, expected = Text(str(folder)), ids(Text(str(folder)), *LONG)
    read: Any = encoder.preprocess
    tokenizer, lengths = type(read.tokenizer), list[int]()
    whole = tokenizer.__call__

    def call(self: Any, text: str, **options: Any) -> Any:
        lengths.append(len(text))
        return whole(self, text, **options)

    monkeypatch.setattr(tokenizer, "__call__", call)
    assert ids(encoder, *["a dog runs"] * 20_000, *LONG) == expected
    assert max(lengths) < 200
    assert read.part_read(Texts(("a dog runs",) * 20_000 + LONG)).texts == ("the dog", "a cat")


def test_the_oldest_are_read_on_demand(folder: Path) -> None:
    encoder = Text(str(folder), long_lists="oldest")
    assert ids(encoder, *LONG) == ids(encoder, "the cat sleeps. a dog runs")
    with pytest.raises(InputError, match=r"Text\.long_lists 'both': give one of newest, oldest"):
        Text(str(folder), long_lists="both")  # type: ignore[arg-type]


def keys_of(encoder: Any, lists: Sequence[tuple[str, ...]], memory: Path) -> list[bytes]:
    examples = [Example(str(n), {"history": InputRef("", texts=texts)}, ("a",)) for n, texts in enumerate(lists)]
    rows = DatasetIndex(examples, [RowKey(frozenset(["history"]), 1.0, 1, 1) for _ in lists], [])
    keys, _ = encode_requests([rows], "history", encoder, memory)
    return [keys[Texts(texts), 0.0, None] for texts in lists]


def old_key(*texts: str) -> bytes:
    """Key of texts before there was a choice."""
    return feature_key(hashlib.sha256(Texts(texts).joined.encode()).hexdigest())


def test_keys_in_the_feature_store_change_where_the_features_do(folder: Path, tmp_path: Path) -> None:
    newest, oldest = Text(str(folder)), Text(str(folder), long_lists="oldest")
    described = store_description(newest)
    assert described == store_description(oldest)  # the same folder of the store
    assert "long_lists" not in json.dumps(described)
    lists = [SHORT, LONG, ("dog " * 30,)]
    assert keys_of(oldest, lists, tmp_path / "memory") == [old_key(*texts) for texts in lists]
    keys = keys_of(newest, lists, tmp_path / "memory")
    assert keys == [old_key(*SHORT), old_key("the dog. a cat"), old_key("dog " * 30)]
    words = Keywords(newest, {"dog": 1.0, "runs": 2.0})  # reads all texts for their keywords
    assert keys_of(words, lists, tmp_path / "memory") == [old_key(*texts) for texts in lists]


def test_models_that_were_saved_without_the_choice_read_as_they_did(folder: Path, tmp_path: Path) -> None:
    old: dict[str, Any] = to_recipe(Text(str(folder)))
    del old["init_args"]["long_lists"]
    recipe = {"branches": {"history": {"encoder": old}, "kept": {"encoder": to_recipe(Text(str(folder)))}}}
    branches: Any = with_added_options(recipe)["branches"]
    assert branches["history"]["encoder"]["init_args"]["long_lists"] == "oldest"
    assert branches["kept"]["encoder"]["init_args"]["long_lists"] == "newest"
    decoder = {"class_path": "mmprefix.decoders.CausalDecoder", "init_args": {"model": "gpt2"}}
    saved = {"format": 1, "recipe": {**recipe, "decoder": decoder}, "parts": {}}
    (tmp_path / "mmprefix.yaml").write_text(json.dumps(saved))
    assert read_recipe(tmp_path)["recipe"]["branches"] == branches


@pytest.mark.models
def test_minilm_reads_the_end_of_a_long_history(real_model: Any) -> None:
    encoder = Text(real_model("all-minilm-l6-v2"))
    history = tuple(f"Sentence {number} is about nothing." for number in range(100))
    read: Any = encoder.preprocess
    part = read.part_read(Texts(history)).texts
    assert part == history[-len(part) :]
    tokens: Tensor = encoder.preprocess(Texts(history), 0.0, None)
    assert 200 < len(tokens) <= 256
    assert torch.equal(tokens, encoder.preprocess(Texts(part), 0.0, None))
