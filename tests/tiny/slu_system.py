"""Small system of spoken language understanding on disk: utterances with labels, a schema, frozen parts, models."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import soundfile
import torch
import transformers as hf
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.encoders.signals import Signals
from mmprefix.encoders.whisper import Whisper
from mmprefix.generation.options import GenerateOptions
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.model import Branch, PrefixLM
from mmprefix.prompt_template import PromptTemplate
from mmprefix.saved_model import ModelSettings
from mmprefix.transcriber import Transcriber
from mmprefix.types import Batch, DeepPrefix, Features
from tiny import decoders as tiny_decoders
from tiny import whisper as tiny_whisper
from tiny.captioning_system import QUIET_TRAINER, CaptioningSystem
from tiny.copies import copy_of
from tiny.speech_system import RATE, recipe_part, tone

SCHEMA = """
name: home
intent: {questions: ["what now?", "which deed?"]}
templates:
  intents: ["is it {description}?", "so {description}?"]
  slots: ["which {description}?", "say the {description}?"]
intents:
  light_on: {answer: "on", description: light}
  light_off: {answer: "off", description: dark}
  ask: {description: news, slots: [thing]}
slots:
  room: {values: [hall, roof]}
  thing: {}
"""
INTENTS = ("light_on", "light_off", "ask")
THINGS = ("dog", "bell", "cat")
WORDING = PromptTemplate("said: {context}\n", "ask: {question}\nso:")
PREFIX = 3  # positions
OPTIONS = GenerateOptions(max_new_tokens=6)
READS = {"wording": {"context": WORDING.context, "question": WORDING.question}}


def rows(folder: Path, count: int = 12) -> list[dict[str, Any]]:
    """Write ``count`` sounds and make their manifest rows: the last third for validation.

    Every other row has the label "wake"; every fourth names no thing.
    """
    manifest: list[dict[str, Any]] = []
    for n in range(count):
        soundfile.write(folder / f"{n}.wav", tone(200.0 + 300 * n, 0.3 + 0.13 * ((5 * n) % count)), RATE)
        intent, thing = INTENTS[n % 3], THINGS[n % 4] if n % 4 < 3 else None
        slots: dict[str, Any] = {"thing": thing} if thing else {}
        if intent != "ask":
            slots["room"] = ("hall", "roof")[n % 2]
        transcript = f"the {thing or 'rain'} runs {n}"
        manifest.append(
            {
                "id": f"o{n}",
                "audio": f"{n}.wav",
                "transcript": transcript,
                "asr": [f"a {transcript}", f"old {transcript}"] if n % 2 else [],
                "signals": [-1.0 - 0.1 * n, 0.5 / (n + 1), 1.0 + (n % 3), 0.2],
                "intent": intent,
                "slots": slots,
                "wake": n % 2 == 0,
                "split": "train" if 3 * n < 2 * count else "val",
            }
        )
    return manifest


def write_manifest(file: Path, records: list[dict[str, Any]]) -> Path:
    """Write a manifest of JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in records))
    return file


@dataclass(frozen=True)
class SluSystem:
    """Folder of parts and data: whisper, decoder, home.yaml, manifest.jsonl, texts.jsonl and 0.wav to 11.wav."""

    folder: Path

    def path(self, name: str) -> str:
        """Path of a file or part in the folder."""
        return str(self.folder / name)

    @property
    def sounds(self) -> list[str]:
        """Sound files, of different lengths in mixed order."""
        return [self.path(f"{n}.wav") for n in range(12)]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of the manifest."""
        return [json.loads(line) for line in (self.folder / "manifest.jsonl").read_text().splitlines()]

    def whisper_model(self) -> PrefixLM:
        """Whisper as encoder and decoder, behind a deep prefix; it is asked about a sound."""
        encoder, decoder = Whisper(self.path("whisper"), window="whole"), CrossDecoder(self.path("whisper"))
        return self._build({"audio": Branch(encoder)}, decoder, std=0.02)

    def text_model(self, transcribes: bool = False) -> PrefixLM:
        """GPT-2 that is asked about a text, or about a sound that Whisper transcribes."""
        transcriber = Transcriber(self.path("whisper"), num_beams=1, max_new_tokens=12) if transcribes else None
        return self._build({}, CausalDecoder(self.path("decoder")), wording=WORDING, transcriber=transcriber)

    def detection_model(self) -> PrefixLM:
        """GPT-2 behind a sound, signals and a text."""
        encoders = {"audio": Whisper(self.path("whisper")), "signals": Signals()}
        torch.manual_seed(4)
        mapper = partial(MLP, length=3, hidden=16)
        branches = {name: Branch(encoder, mapper) for name, encoder in encoders.items()}
        return self._build(branches, CausalDecoder(self.path("decoder")), wording=PromptTemplate("said: {context}\n"))

    def _build(self, branches: dict[str, Branch], decoder: ComposedDecoder, std: float = 0.5, **more: Any) -> PrefixLM:
        torch.manual_seed(5)
        model = PrefixLM(branches, decoder, lambda sizes: DeepTable(sizes, length=PREFIX, std=std), **more)
        with torch.no_grad():
            for parameter in model.mappers.parameters():  # fresh mappers give nearly the same prefix for every input
                parameter.add_(torch.randn(parameter.shape) * 0.4)
        return model

    def save(self, directory: Path, model: PrefixLM, settings: ModelSettings | None = None) -> Path:
        """Save ``model`` as training does."""
        Predictor(model, replace(settings or ModelSettings(), generate=OPTIONS, prompt="")).save(directory)
        return directory

    def config(self, kind: str = "text", **data: Any) -> dict[str, Any]:
        """Recipe as plain data that trains ``text_model`` ("text") or ``whisper_model`` ("whisper") on questions."""
        model: dict[str, Any] = {
            "prefix": recipe_part("mappers.deep.DeepTable", length=PREFIX),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            "generate": {"max_new_tokens": 6},
        }
        if kind == "text":
            model |= {
                "branches": {},
                "decoder": recipe_part("decoder.CausalDecoder", model=self.path("decoder")),
                **READS,
            }
            data = {"context": ["asr", "transcript"], **data}
        else:
            encoder = recipe_part("encoders.whisper.Whisper", model=self.path("whisper"), window="whole")
            model |= {"branches": {"audio": {"encoder": encoder}}}
            model |= {"decoder": recipe_part("seq2seq.CrossDecoder", model=self.path("whisper"))}
        options = {"root": str(self.folder), "schema": self.path("home.yaml"), "batch_size": 3, **data}
        return {
            "seed_everything": 1,
            "model": model,
            "data": recipe_part("questioned.QuestionData", **options),
            "trainer": {**QUIET_TRAINER, "max_epochs": 2},
        }

    def recipe(self, config: dict[str, Any], root: Path) -> Path:
        """Write ``config`` to ``root``/recipe.yaml, with a log of every step in ``root``/steps.jsonl."""
        root.mkdir(parents=True, exist_ok=True)
        log = {"class_path": "tiny.slu_system.StepLog", "init_args": {"file": str(root / "steps.jsonl")}}
        config["trainer"] |= {"callbacks": [*config["trainer"].get("callbacks", []), log]}
        return CaptioningSystem(self.folder).recipe(config, root)


def build(folder: Path, trained: bool = False) -> SluSystem:
    """Make parts and data; texts.jsonl has the manifest's rows without files. ``trained``: Whisper knows the sounds."""
    copy_of(f"slu-{'trained' if trained else 'untrained'}", folder, lambda place: _make(place, trained))
    return SluSystem(folder)


def _make(folder: Path, trained: bool) -> None:
    tiny_whisper.save_whisper(folder / "whisper")
    tiny_decoders.save_decoder(folder / "decoder")
    (folder / "home.yaml").write_text(SCHEMA)
    records = rows(folder)
    write_manifest(folder / "manifest.jsonl", records)
    texts = [{key: value for key, value in row.items() if key not in ("audio", "signals")} for row in records]
    write_manifest(folder / "texts.jsonl", texts)
    if trained:
        _train_whisper(SluSystem(folder))


def expected_transcript(row: dict[str, Any]) -> str:
    """Transcript of a row by the trained Whisper."""
    return f"{row['slots'].get('thing', 'rain')} runs"


def _train_whisper(system: SluSystem) -> None:
    """Train Whisper to transcribe the twelve sounds and, behind the prefix of ``whisper_model``, to answer questions.

    Its transcript of silence is "hill runs".
    """
    tiny_whisper.save_whisper(system.folder / "whisper", sharp=1.0)
    torch.manual_seed(0)
    model = cast(Any, hf.WhisperForConditionalGeneration.from_pretrained(system.path("whisper")))
    extractor = hf.WhisperFeatureExtractor.from_pretrained(system.path("whisper"))
    clips = [*(soundfile.read(file)[0] for file in system.sounds), 0.0 * tone(200.0, 0.5)]
    inputs = extractor(clips, sampling_rate=RATE, return_tensors="pt").input_features
    prefix_model = system.whisper_model()
    no_features = Features(torch.zeros(1, 0, 0), torch.zeros(1, 0, dtype=torch.bool), torch.zeros(1, 0))
    decoder, mapper = prefix_model.decoder, prefix_model.task_prefix
    assert isinstance(decoder, CrossDecoder)
    assert mapper is not None
    prefix = mapper(no_features)
    assert isinstance(prefix, DeepPrefix)
    silence: dict[str, Any] = {"intent": None, "slots": {"thing": "hill"}}
    groups = [_training_rows(decoder, [*system.rows, silence], questions) for questions in (False, True)]

    def run() -> tuple[Tensor, float]:
        frames = model.model.encoder(inputs).last_hidden_state
        results = []
        for questions, (owner, ids, labels) in enumerate(groups):
            past = prefix_cache(prefix, len(ids)) if questions else None
            arguments = {"decoder_input_ids": ids, "past_key_values": past}
            logits = model(encoder_outputs=(frames[owner],), **arguments).logits
            results.append(tiny_whisper.loss_and_lead(logits, labels))
        return results[0][0] + results[1][0], min(lead for _, lead in results)

    tiny_whisper.train_until_clear(model, run)
    model.save_pretrained(system.path("whisper"))


def prefix_cache(prefix: DeepPrefix, count: int) -> hf.EncoderDecoderCache:
    """Cache of the prefix (L 1 H P K) repeated for ``count`` inputs, in the form of Transformers' Whisper."""
    layers = [
        tuple(part[n].detach().expand(count, -1, -1, -1) for part in (prefix.keys, prefix.values))
        for n in range(len(prefix.keys))
    ]
    return hf.EncoderDecoderCache(hf.DynamicCache(layers), hf.DynamicCache())


def _training_rows(
    decoder: CrossDecoder, records: list[dict[str, Any]], questions: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Training rows of transcripts, or of questions and answers: sound (C,), tokens (C N), labels (C N), -100: none."""
    texts = [(n, q, answer) for n, row in enumerate(records) for q, answer in _targets(row) if bool(q) == questions]
    codec = decoder.codec
    befores, answers = zip(*((codec.question_ids("", q), codec.target_ids("", a)) for _, q, a in texts), strict=True)
    lines = [[*before, *answer] for before, answer in zip(befores, answers, strict=True)]
    width = max(map(len, lines))
    ids = torch.tensor([line + [0] * (width - len(line)) for line in lines])
    bounds = torch.tensor([[len(before), len(line)] for before, line in zip(befores, lines, strict=True)])
    position = torch.arange(width)
    labels = ids.masked_fill((position < bounds[:, :1]) | (position >= bounds[:, 1:]), -100)
    return torch.tensor([n for n, _, _ in texts]), ids[:, :-1], labels[:, 1:]


def _targets(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Questions and answers of a row; an empty question stands for the transcript."""
    if row["intent"] is None:
        return [("", expected_transcript(row))]
    answer = {"light_on": "on", "light_off": "off", "ask": "news"}[row["intent"]]
    slots = [(f"which {name}?", row["slots"].get(name, "none")) for name in ("room", "thing")]
    return [("", expected_transcript(row)), ("what now?", answer), *slots]


class StepLog(Callback):
    """Logs the texts of each training step, a JSON line a step."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        step = {"ids": batch.ids, "questions": batch.questions, "targets": batch.targets, "contexts": batch.contexts}
        with self.file.open("a") as stream:
            stream.write(json.dumps(step) + "\n")


def logged_steps(root: Path) -> list[dict[str, Any]]:
    """Training steps that ``StepLog`` wrote below ``root``."""
    return [json.loads(line) for line in (root / "steps.jsonl").read_text().splitlines()]
