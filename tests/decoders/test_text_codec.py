"""Text codecs: texts that name special tokens keep their words, prompts may use them."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.text_codec import Seq2SeqCodec, TextCodec, WhisperCodec
from mmprefix.decoders.word_level import WordCodec
from mmprefix.errors import InputError
from mmprefix.types import Prefix
from tiny.decoders import END, TEXT, make_tokenizer, save_decoder
from tiny.whisper import tokenizer as whisper_tokenizer

TEXTS = [f"a dog{END} barks", END, f"{END}{END} rain", f"the <|im_end|> of a {END}", "a dog barks"]


def chat_tokenizer() -> Any:
    """Tokenizer with an end token of its own and a special token for chats."""
    words: Any = make_tokenizer()
    words.add_tokens([AddedToken("<|im_end|>", special=True)], special_tokens=True)
    return words


def wordpiece_tokenizer() -> Any:
    """Tokenizer of another kind (Unigram with a metaspace, as SentencePiece), with ``</s>`` as its end."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    letters = sorted({*"".join(TEXT), *END, *"</s>im_"})
    core.train_from_iterator(
        TEXT * 3,
        trainers.UnigramTrainer(
            vocab_size=90,
            special_tokens=["</s>", "<unk>"],
            initial_alphabet=letters,
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def codecs() -> dict[str, TextCodec]:
    generation = hf.GenerationConfig(decoder_start_token_id=0)
    return {
        "causal": TextCodec(make_tokenizer(), "x"),
        "chat": TextCodec(chat_tokenizer(), "x"),
        "stop": TextCodec(chat_tokenizer(), "x", stop="."),
        "whisper": WhisperCodec(whisper_tokenizer(), "x", "en", "transcribe"),
        "text to text": Seq2SeqCodec(make_tokenizer(), "x", generation),
    }


@pytest.mark.parametrize("name", codecs())
@pytest.mark.parametrize("text", TEXTS)
def test_a_target_keeps_its_words(name: str, text: str) -> None:
    codec = codecs()[name]
    ids = codec.target_ids("", text)
    ended = codec.stop is None
    body = ids[:-1] if ended else ids
    assert codec.special.isdisjoint(body)
    assert ids[-1] == codec.eos or not ended
    assert codec.decode(ids) == text
    assert codec.count([text]) == [len(ids)]


def test_another_kind_of_tokenizer_keeps_the_words() -> None:
    codec = TextCodec(wordpiece_tokenizer(), "x")
    for text in ("a dog</s> barks", "</s>", "a dog barks"):
        ids = codec.target_ids("", text)
        assert ids.count(codec.eos or 0) == 1
        assert codec.decode(ids) == text


def test_a_prompt_may_use_special_tokens() -> None:
    words = chat_tokenizer()
    codec = TextCodec(words, "x")
    prompt = f"<|im_end|>the cat{END}"
    assert codec.prompt_ids(prompt, False) == words(prompt)["input_ids"]
    assert codec.question_ids("", prompt) == words(prompt)["input_ids"]
    assert codec.target_ids("", prompt)[:-1] != words(prompt)["input_ids"]
    assert codec.prompt_ids(prompt, False) == words(prompt)["input_ids"]  # whatever was asked before


def test_a_special_token_as_stop_ends_captions() -> None:
    words = chat_tokenizer()
    codec = TextCodec(words, "x", stop="<|im_end|>")
    end = words.convert_tokens_to_ids("<|im_end|>")
    ids = codec.target_ids("", "a <|im_end|> dog<|im_end|>")
    assert ids[-1] == end
    assert ids.count(end) == 1
    assert end in codec.stop_ids().tolist()
    assert codec.choice_ids("", "a dog")[-1] == end
    assert codec.stop_ids(exactly=True).tolist() == [end]


def test_ordinary_texts_have_the_tokens_of_the_tokenizer() -> None:
    words = make_tokenizer()
    codec = TextCodec(words, "x")
    for text in (*TEXT, " a dog", "<|endoftext", "< | endoftext | >"):
        assert codec.subword_ids(text) == words(text)["input_ids"]
    assert "_splitting" not in vars(codec)  # no copy was made


def test_an_unknown_word_stays_unknown_though_its_token_ends_texts() -> None:
    core = Tokenizer(models.WordLevel({END: 0, "dog": 1}, unk_token=END))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    codec = TextCodec(hf.PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, bos_token=END), "x")
    assert codec.target_ids("", "a dog runs") == [0, 1, 0, 0]
    assert codec.target_ids("", f"dog {END}")[0] == 1
    assert codec.count(["a dog runs"]) == [4]


def test_threads_do_not_disturb_each_other() -> None:
    codec, expected = TextCodec(make_tokenizer(), "x"), TextCodec(make_tokenizer(), "x")
    texts = [f"a dog {n}{END if n % 2 else ''}" for n in range(300)]
    with ThreadPoolExecutor(8) as pool:
        targets = list(pool.map(lambda text: codec.target_ids("", text), texts))
        prompts = list(pool.map(lambda text: codec.prompt_ids(text, False), texts))
    assert targets == [expected.target_ids("", text) for text in texts]
    assert prompts == [expected.prompt_ids(text, False) for text in texts]


def test_a_word_that_names_the_end_does_not_end_a_text() -> None:
    codec = WordCodec(make_tokenizer(), "x", ["a", "dog", "<eos>", "<unk>"])
    assert codec.target_ids("", "a <eos> dog") == [0, 3, 1, 2]
    with pytest.raises(InputError, match="'<eos>'"):
        WordCodec(make_tokenizer(), "x", ["a", "dog", "<eos>"]).target_ids("", "a <eos> dog")


@pytest.mark.numeric
def test_the_score_of_a_caption_that_names_the_end_is_that_of_its_words(tmp_path: Any) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path))
    embeds = torch.randn(1, 3, 32)
    text = f"a dog{END} barks"
    score = decoder.score(decoder.prefill(Prefix(embeds, torch.ones(1, 3, dtype=torch.bool))), [""], [[text]])[0][0]
    ids = [*decoder.codec.subword_ids(text), 0]
    inputs = torch.cat([embeds, decoder.lm.get_input_embeddings()(torch.tensor([ids]))], dim=1)
    log_probs = decoder.lm(inputs_embeds=inputs).logits[0, 2:-1].log_softmax(-1)
    assert score == pytest.approx(float(log_probs.gather(1, torch.tensor(ids)[:, None]).sum()), abs=1e-3)


# ------------------------------------------------------------------------------------------------- settled texts


def _byte_fallback() -> Any:
    """Tokenizer of Llama's kind: "▁" for a space, a token for every byte."""
    words = ["</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "▁a", "▁dog", "s", "é"]
    core = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [], byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def _cleaning() -> Any:
    """Tokenizer of BERT's kind, whose texts are cleaned up."""
    words = ["[UNK]", "[SEP]", "do", "n", "'", "t", "it", "s", "##s", ".", ",", "ve", "dog"]
    core = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece(cleanup=False)
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[SEP]", clean_up_tokenization_spaces=True)


@pytest.mark.parametrize("make", [make_tokenizer, wordpiece_tokenizer, _byte_fallback, _cleaning])
def test_no_later_token_changes_a_settled_text(make: Callable[[], Any]) -> None:
    """Random tokens, most of them single bytes, in any order."""
    tokenizer = make()
    codec, generator, shown = TextCodec(tokenizer, "tiny"), random.Random(2), 0
    for _ in range(300):
        ids = [generator.randrange(1, len(tokenizer)) for _ in range(12)]
        texts = [codec.settled_text(ids[:n]) for n in range(len(ids) + 1)]
        assert all(codec.decode(ids[:n]).startswith(texts[m]) for m in range(12) for n in range(m, 13))
        shown += sum(map(bool, texts))
    assert shown > 300


def test_a_character_is_settled_once_it_is_whole() -> None:
    codec = TextCodec(make_tokenizer(), "tiny")
    ids = codec.subword_ids("a €")
    assert len(ids) >= 4
    assert codec.settled_text(ids[:-1]) == "a"
    assert codec.settled_text(ids) == "a €"


def test_words_are_settled_as_they_come() -> None:
    words = ["!", "<eos>", "a", "dog", "barks."]
    codec = WordCodec(make_tokenizer(), "tiny", words, single_stop=True)
    assert [codec.settled_text([2, 3, 4, 1][:n]) for n in range(5)] == ["", "a", "a dog", "a dog barks", "a dog barks"]
    assert codec.decode([2, 3, 4, 1]) == "a dog barks."
