"""The reader: its questions have right answers, its windows hold whole texts, and its program runs end to end."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mmprefix.errors import InputError
from mmprefix.recipes.pretrain import decoder_tokens
from mmprefix.recipes.pretrain import reader as pretrain_reader
from mmprefix.recipes.pretrain.reading import words as reader_words
from mmprefix.recipes.pretrain.reading.questions import Asker
from mmprefix.recipes.pretrain.reading.words import Corpus, build_corpus

TASKS = ("wake me up at", "set an alarm for", "remind me of it at", "play some music at", "call my mother at")
TIMES = ("nine am", "seven pm", "ten", "noon", "six am tomorrow", "five pm today")
REQUESTS = [f"{task} {time}" for task in TASKS for time in TIMES]
GENERAL = ["a dog runs along the beach", "two cats sleep on a warm roof"]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    requests = [text.split() for text in REQUESTS]
    return build_corpus(
        requests, {0: [["wake", "me", "at", "nine"]]}, [text.split() for text in GENERAL], views=3, seed=0
    )


def test_answers_fit_their_questions(corpus: Corpus):
    asker, words = Asker(corpus, 1), ["play", "some", "music", "at", "seven", "pm"]
    text = " ".join(words)
    for _ in range(200):
        for form in (asker.after, asker.before):
            question, answer = form(words) or ("", "")
            quoted = question.partition("'")[2].rstrip("'?")
            if answer != "none":
                together = f"{quoted} {answer}" if form == asker.after else f"{answer} {quoted}"
                assert text.endswith(together) if form == asker.after else text.startswith(together)
            else:
                assert f" {quoted} " not in f" {text} "
        question, answer = asker.between(words) or ("", "")
        if question:
            _, left, _, right, _ = question.split("'")
            assert f"{left} {answer} {right}" in text
        question, answer = asker.said(words)
        assert answer == ("yes" if f" {question.split(chr(39))[1]} " in f" {text} " else "no")
        question, answer = asker.which(words)
        options = question.partition(": ")[2].rstrip("?").split(", ")
        assert [option for option in options if f" {option} " in f" {text} "] == [answer]
        question, answer = asker.gap(words)
        assert question.partition(": ")[2].rstrip("?").replace("_", answer) in text


def test_no_question_asks_for_the_neighbour_of_a_word_that_occurs_twice(corpus: Corpus):
    asker = Asker(corpus, 2)
    assert {asker.neighbour(["go", "go"]) for _ in range(20)} == {None}
    assert {asker.earlier(["go", "go"]) for _ in range(20)} == {None}


def test_words_of_a_group_are_located_in_a_sentence(corpus: Corpus):
    kinds = [{"nine": 0, "am": 0, "ten": 0, "noon": 0, "wake": 1, "call": 1}]
    asker = Asker(Corpus(corpus.requests, {}, corpus.general, corpus.counts, kinds, corpus.views, corpus.near), 0)
    words = ["wake", "me", "at", "nine", "am", "or", "ten"]
    answers = {pair[1] for _ in range(200) if (pair := asker.like(words)) and "noon" in pair[0]}
    assert answers == {"nine am, ten"}


def test_texts_are_transcript_question_answer_and_end_with_an_answer(corpus: Corpus):
    for group in Asker(corpus, 3).texts(200):
        assert not isinstance(group, str)
        assert group[0].startswith("transcript: ")
        for text in group:
            transcript, question, answer = ["", *text.split("\n")][-3:]
            assert transcript == "" or transcript.startswith("transcript: ")
            assert question.startswith("question: ")
            assert question.endswith("?")
            assert answer.removeprefix("answer: ").strip()


def test_groups_have_names_of_their_own(corpus: Corpus):
    table, features = reader_words.feature_table(corpus.requests)
    names = reader_words.view(table, features, 5, 0)
    assert len(names) == len(REQUESTS)
    assert 2 <= len(set(names)) <= 5
    alike = [corpus.requests[index] for index in reader_words.nearest(table, 3)[0]]
    assert all(set(words) & {"wake", "nine"} for words in alike)
    assert all(index not in near for index, near in enumerate(corpus.near))


def test_words_between_the_same_neighbours_are_of_a_kind():
    things, deeds = ("car", "hat", "cup"), ("see", "take", "buy")
    sentences = [[deed, "the", thing, "now"] for deed in deeds for thing in things]
    kinds = reader_words.word_kinds(sentences, 4, 0)
    assert kinds["car"] == kinds["hat"] == kinds["cup"]
    assert kinds["car"] != kinds["see"]


def test_rows_hold_whole_groups_and_only_answers_have_full_weight():
    texts = ["transcript: a b\nquestion: c?\nanswer: d e", "question: f?\nanswer: g"]
    tokenizer = decoder_tokens.train_tokenizer(texts, 300)
    length = sum(len(line) + 1 for line in tokenizer(texts)["input_ids"])
    ids, starts = decoder_tokens.stream([texts, texts], tokenizer, row=length + 3)
    assert len(ids) == 2 * (length + 3)
    assert starts.tolist() == [0, length + 3]
    end = decoder_tokens.END
    for row in ids.view(2, -1):
        assert tokenizer.decode(row) == f"{end}{texts[0]}{end}{texts[1]}{end}{end}{end}"
    weight = decoder_tokens.weights(ids, tokenizer, "\nanswer:", 0.25)
    assert tokenizer.decode(ids[weight == 1]) == f" d e{end} g{end}" * 2
    filling = [token == before == tokenizer.eos_token_id for before, token in pairwise([ids[-1], *ids])]
    assert (weight == 0).tolist() == filling
    assert set(weight.tolist()) == {0, 0.25, 1}
    assert decoder_tokens.weights(ids, tokenizer, None, 0.25).max() == 1


def test_a_group_longer_than_a_row_is_cut():
    tokenizer = decoder_tokens.train_tokenizer(["a b c d"], 280)
    ids, starts = decoder_tokens.stream([["a b c d"] * 9, ["a"]], tokenizer, row=8)
    assert starts.tolist() == [0, 8]
    assert tokenizer.decode(ids[8:]) == f"{decoder_tokens.END}a" + decoder_tokens.END * 6


def manifest(folder: Path) -> list[str]:
    rows: list[dict[str, object]] = []
    for text in REQUESTS:
        rows.append({"transcript": text, "split": "train", "intent": "secret"})
    rows.append({"transcript": REQUESTS[0], "split": "test"})
    rows.append({"transcript": "Call Bob, at noon!", "split": "val"})
    rows[1]["asr_1best"] = ["wake me up at seven", REQUESTS[1]]
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)))
    general = [{"captions": GENERAL, "split": "train"}, {"captions": ["never read this one"], "split": "test"}]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, general)))
    return [str(folder / "requests.jsonl"), "--captions", str(folder / "captions.jsonl")]


def test_only_training_sentences_are_read(tmp_path: Path):
    manifest(tmp_path)
    train, recognised, val = pretrain_reader.read_requests([tmp_path / "requests.jsonl"])
    assert [" ".join(words) for words in train] == REQUESTS[1:]
    assert recognised == {0: [["wake", "me", "up", "at", "seven"]]}
    assert val == [["call", "bob", "at", "noon"]]
    assert [" ".join(words) for words in pretrain_reader.read_general([tmp_path / "captions.jsonl"])] == GENERAL


def test_program_trains_measures_and_writes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sizes = ["--layers", "1", "--heads", "2", "--width", "16", "--vocab-size", "320", "--positions", "96"]
    course = ["--steps", "3", "--batch-tokens", "192", "--texts", "40", "--views", "2", "--measure", "1"]
    pretrain_reader.main([*manifest(tmp_path), "--folder", str(tmp_path / "reader"), *sizes, *course])
    figures = json.loads(capsys.readouterr().out)
    assert {"after", "said", "which"} <= figures["exact"].keys()
    assert all(0 <= share <= 1 for share in figures["exact"].values())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "reader")
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert all(torch.isfinite(value).all() for value in model.parameters())


def test_too_few_sentences_are_refused():
    with pytest.raises(InputError, match="3 requests in the training split: 20 or more"):
        build_corpus([["go"]] * 3, {}, [["a", "b", "c"]], views=1, seed=0)
    with pytest.raises(InputError, match="--captions: no sentence"):
        build_corpus([["go"]] * 30, {}, [], views=1, seed=0)
