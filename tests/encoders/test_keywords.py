"""Keywords: TF-IDF equal to scikit-learn's, any writing, a model that needs no file, wrong files refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from mmprefix.encoders.keywords import WORD, Keywords, keyword_weights, read_idf
from mmprefix.encoders.text import Text
from mmprefix.errors import InputError
from mmprefix.media.source import Texts
from mmprefix.parts import from_recipe, to_recipe
from mmprefix.recipes.prepare import keywords as program
from mmprefix.weights.dry_run import without_weights
from tiny.texts import save_text

HISTORIES = {
    "u1": ["A dog runs. #fun", "the dog sleeps, the cat too"],
    "u2": ["Ein Hund läuft über die Straße", "ÄRGER"],
    "u3": ["🐕 🐕 #Hund", "犬 が 走る"],
    "u4": ["dog"],
    "u5": ["a a a a b b c"],
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    lines = [json.dumps({"user": user, "history": texts}) for user, texts in HISTORIES.items()]
    (folder / "users.jsonl").write_text("\n".join([*lines, '{"user": "u6", "history": []}']))
    assert program.main([str(folder / "users.jsonl"), "--out", str(folder / "words.json")]) == 0
    return folder / "words.json"


@pytest.mark.parametrize("texts", [*HISTORIES.values(), ["DOG dog"], ["🐕"], [], ["unknown words only"], ["", "  "]])
def test_weights_are_those_of_scikit_learn(words: Path, texts: list[str]) -> None:
    documents = [" ".join(history) for history in [*HISTORIES.values(), []]]
    reference: Any = TfidfVectorizer(token_pattern=WORD).fit(documents)
    row = reference.transform([" ".join(texts)]).toarray()[0]
    names = reference.get_feature_names_out()
    expected = {str(names[index]): row[index] for index in np.flatnonzero(row)}
    own = keyword_weights(texts, read_idf(words))
    assert own == pytest.approx(expected)
    assert list(own.values()) == sorted(own.values(), reverse=True)


def test_weights_are_those_of_scikit_learn_on_random_users(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [[" ".join(draw.choices("abcdefghijkl", k=9)) for _ in range(draw.randint(1, 4))] for _ in range(30)]
    idf = program.fit_idf(texts[:20], most=10)
    reference: Any = TfidfVectorizer(token_pattern=WORD, max_features=10).fit([" ".join(text) for text in texts[:20]])
    for history in texts:
        row = reference.transform([" ".join(history)]).toarray()[0]
        own = keyword_weights(history, idf)
        assert [own.get(str(name), 0.0) for name in reference.get_feature_names_out()] == pytest.approx(row.tolist())


def test_the_text_encoder_reads_the_first_keywords(words: Path, tmp_path: Path) -> None:
    text = Text(str(save_text(tmp_path / "bert", "bert")))
    encoder = Keywords(text, str(words), top=2)
    best = ", ".join(list(keyword_weights(HISTORIES["u1"], read_idf(words)))[:2])
    assert torch.equal(encoder.preprocess(Texts(tuple(HISTORIES["u1"])), 0.0, None), read(text, best))
    assert torch.equal(encoder.preprocess(Texts(("unknown words",)), 0.0, None), read(text, "-"))
    with pytest.raises(InputError, match="empty"):
        encoder.preprocess(Texts(("",)), 0.0, None)


def read(encoder: Text, text: str) -> torch.Tensor:
    return encoder.preprocess(Texts((text,)), 0.0, None)


def test_a_recipe_of_it_holds_the_words(words: Path, tmp_path: Path) -> None:
    copy = tmp_path / "words.json"
    copy.write_bytes(words.read_bytes())
    encoder = Keywords(Text(str(save_text(tmp_path / "bert", "bert"))), str(copy), top=3)
    recipe = to_recipe(encoder)
    copy.unlink()
    rebuilt = from_recipe(json.loads(json.dumps(recipe)), Keywords)
    texts = Texts(tuple(HISTORIES["u2"]))
    assert torch.equal(rebuilt.preprocess(texts, 0.0, None), encoder.preprocess(texts, 0.0, None))
    assert repr(rebuilt.preprocess) == repr(encoder.preprocess)  # stored features are found again


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"idf": {}}', '{"idf": {"a": -1}}', '{"idf": {"a": "x"}}', "\x80"]
)
def test_files_of_other_kinds_are_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"words\.json"):
        read_idf(file)


def test_users_without_words_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "users.jsonl").write_text('{"user": "a", "history": []}')
    assert program.main([str(tmp_path / "users.jsonl"), "--out", str(tmp_path / "words.json")]) == 2
    assert "no user has a text with a word in it" in capsys.readouterr().err


@pytest.mark.parametrize("words", [{}, {"a": "x"}, {"a": -1.0}])
def test_words_in_a_recipe_are_checked_as_those_of_a_file(words: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Keywords\.words"):
        Keywords(Text(str(save_text(tmp_path / "bert", "bert"))), words)


def test_a_dry_run_needs_no_file(tmp_path: Path) -> None:
    text = Text(str(save_text(tmp_path / "bert", "bert")))
    with without_weights():
        assert Keywords(text, str(tmp_path / "none.json")).dim == text.dim
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        Keywords(text, str(tmp_path / "none.json"))
