"""Whisper as it comes: transcripts against Transformers' pipeline on the same weights, and what shorter windows cost.

    python -m benchmarks.studies.transcription ../shared/data models:whisper-base
    python -m benchmarks.studies.transcription ../shared/data models:whisper-base --split val --windows

The first compares token ids of every utterance of slurp_tts, greedy, in batches that both ways read in turn, in random
order, on one thread. The second gives word error rates by how much silence is encoded. Times are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import pipeline
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from mmprefix.data.collate import pad_media
from mmprefix.metrics.edit_distance import wer
from mmprefix.transcriber import Transcriber
from mmprefix.weights.source import resolve_folder

Texts = list[tuple[str, list[int]]]  # text and token ids of each utterance
WINDOWS = (("filled", None), ("filled", 5.0), ("filled", 2.0), ("filled", 1.0), ("whole", 5.0), ("whole", 2.0))


@dataclass(frozen=True)
class Utterances:
    """Sounds (S) and what is said in each."""

    sounds: list[Tensor]
    spoken: list[str]

    def errors(self, written: list[str]) -> tuple[float, int, int]:
        """Word error rate of transcripts, sentences without an error, and those more than twice too long."""
        normalize = EnglishTextNormalizer({})
        pairs = [(normalize(own), normalize(other)) for own, other in zip(written, self.spoken, strict=True)]
        right = sum(own == other for own, other in pairs)
        long = sum(len(own.split()) > 2 * len(other.split()) + 2 for own, other in pairs)
        return wer([own for own, _ in pairs], [other for _, other in pairs]), right, long


def read_utterances(data: Path, split: str, rows: int | None, model: Transcriber) -> Utterances:
    """First ``rows`` utterances of a split of slurp_tts, all for None."""
    lines = (data / "slurp_tts" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [entry for entry in map(json.loads, lines) if entry["split"] == split][:rows]
    sounds = [model.preprocess(str(data / "slurp_tts" / entry["audio"]), 0.0, None) for entry in entries]
    return Utterances(sounds, [entry["transcript"] for entry in entries])


def by_mmprefix(model: Transcriber) -> Callable[[list[Tensor]], Texts]:
    """Function from sounds to texts and their tokens."""
    decoder: Any = model.decoder
    search, tokens = decoder.search_tokens, list[list[int]]()

    def recorded(*args: Any) -> Any:
        groups = search(*args)
        tokens.extend(_until(group[0][0], decoder.tokenizer.eos_token_id) for group in groups)
        return groups

    decoder.search_tokens = recorded

    def write(sounds: list[Tensor]) -> Texts:
        tokens.clear()
        texts = [transcript.text for transcript in model(pad_media(sounds))]
        return list(zip(texts, tokens, strict=True))

    return write


def by_transformers(model: str, batch: int) -> Callable[[list[Tensor]], Texts]:
    """Texts by Transformers' pipeline for speech recognition."""
    recogniser: Any = pipeline("automatic-speech-recognition", model=str(resolve_folder(model)), dtype=torch.float32)
    generate, tokens, end = recogniser.model.generate, list[list[int]](), recogniser.tokenizer.eos_token_id

    def recorded(*args: Any, **options: Any) -> Any:
        output = generate(*args, **options)
        tokens.extend(output.tolist())
        return output

    recogniser.model.generate = recorded
    options = {"language": "en", "task": "transcribe", "num_beams": 1}

    def write(sounds: list[Tensor]) -> Texts:
        tokens.clear()
        inputs = [{"raw": sound.numpy(), "sampling_rate": 16000} for sound in sounds]
        texts = [output["text"].strip() for output in recogniser(inputs, batch_size=batch, generate_kwargs=options)]
        return [(text, _until(ids, end)) for text, ids in zip(texts, tokens, strict=True)]

    return write


def _until(ids: list[int], end: int) -> list[int]:
    """Token ids before the end of text, which Transformers leaves out of the longest text of a batch."""
    return ids[: ids.index(end)] if end in ids else ids


def compare(model: str, utterances: Utterances, batch: int, mine: Transcriber) -> None:
    """Print equality of tokens, word error rates, and CPU time of both ways, batch by batch in turn."""
    ways = {"mmprefix": by_mmprefix(mine), "transformers": by_transformers(model, batch)}
    written: dict[str, Texts] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    draw = random.Random(0)
    for first in range(0, len(utterances.sounds), batch):
        sounds = utterances.sounds[first : first + batch]
        for name in draw.sample(list(ways), len(ways)):
            start = time.process_time()
            written[name] += ways[name](sounds)
            seconds[name].append((time.process_time() - start) / len(sounds))
    rows = list(zip(*written.values(), strict=True))
    texts, ids = sum(own[0] == other[0] for own, other in rows), sum(own[1] == other[1] for own, other in rows)
    print(f"{len(rows)} utterances in batches of {batch}: {texts} texts and {ids} token sequences are equal")
    for name, own in written.items():
        rate, right, long = utterances.errors([text for text, _ in own])
        median, total = statistics.median(seconds[name]), sum(seconds[name]) / len(seconds[name])
        print(f"{name}: WER {rate:.3f}, {right} right, {long} too long; {median:.3f} CPU s each (mean {total:.3f})")
    ratio = statistics.median(seconds["transformers"]) / statistics.median(seconds["mmprefix"])
    print(f"ratio of medians {ratio:.3f}")


def compare_windows(utterances: Utterances, batch: int, model: Transcriber) -> None:
    """Print word error rate and CPU time for each way to encode less than the window."""
    encoder: Any = model.encoder
    encode, encoding = encoder.encode, [0.0]

    def timed(media: Any) -> Any:
        start = time.process_time()
        features = encode(media)
        encoding[0] += time.process_time() - start
        return features

    encoder.encode = timed
    for encoder.window, encoder.silence in WINDOWS:
        encoding[0], start, texts = 0.0, time.process_time(), list[str]()
        for first in range(0, len(utterances.sounds), batch):
            texts += [each.text for each in model(pad_media(utterances.sounds[first : first + batch]))]
        total, count = time.process_time() - start, len(texts)
        rate, right, long = utterances.errors(texts)
        name = "all" if encoder.silence is None else f"{encoder.window}, {encoder.silence:g} s"
        print(f"{name}: WER {rate:.3f}, {right} of {count} right, {long} too long", end="; ")
        print(f"{total / count:.3f} CPU s each, the encoder {encoding[0] / count:.3f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help="folder with slurp_tts")
    parser.add_argument("model", help="a Whisper, such as models:whisper-base")
    parser.add_argument("--split", default="test")
    parser.add_argument("--rows", type=int, metavar="N", help="only the first rows of the split")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    parser.add_argument("--windows", action="store_true", help="compare windows instead")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = Transcriber(options.model, num_beams=1)
    utterances = read_utterances(options.data, options.split, options.rows, model)
    if options.windows:
        compare_windows(utterances, options.batch_size, model)
    else:
        compare(options.model, utterances, options.batch_size, model)


if __name__ == "__main__":
    main()
