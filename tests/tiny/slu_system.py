"""A small understanding system on disk: orders with intents, slots and labels, a schema, frozen parts, models."""

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
from tiny.captioning_system import CaptioningSystem
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
    """Orders, the last third of them to validate on; every other is directed, every fourth names no thing."""
    found: list[dict[str, Any]] = []
    for n in range(count):
        soundfile.write(folder / f"{n}.wav", tone(200.0 + 300 * n, 0.3 + 0.13 * ((5 * n) % count)), RATE)
        intent, thing = INTENTS[n % 3], THINGS[n % 4] if n % 4 < 3 else None
        slots: dict[str, Any] = {"thing": thing} if thing else {}
        if intent != "ask":
            slots["room"] = ("hall", "roof")[n % 2]
        said = f"the {thing or 'rain'} runs {n}"
        found.append(
            {
                "id": f"o{n}",
                "audio": f"{n}.wav",
                "transcript": said,
                "asr": [f"a {said}", f"old {said}"] if n % 2 else [],
                "signals": [-1.0 - 0.1 * n, 0.5 / (n + 1), 1.0 + (n % 3), 0.2],
                "intent": intent,
                "slots": slots,
                "wake": n % 2 == 0,
                "split": "train" if 3 * n < 2 * count else "val",
            }
        )
    return found


def write(file: Path, found: list[dict[str, Any]]) -> Path:
    """A manifest of JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return file


@dataclass(frozen=True)
class Orders:
    """Where parts and data are: whisper, decoder, home.yaml, manifest.jsonl, texts.jsonl and 0.wav to 11.wav."""

    folder: Path

    def place(self, name: str) -> str:
        """A path in the folder."""
        return str(self.folder / name)

    @property
    def sounds(self) -> list[str]:
        """The sounds, of different lengths in mixed order."""
        return [self.place(f"{n}.wav") for n in range(12)]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the manifest."""
        return [json.loads(line) for line in (self.folder / "manifest.jsonl").read_text().splitlines()]

    def hears(self) -> PrefixLM:
        """Whisper that is asked about what it hears, behind a deep prefix."""
        ears, mouth = Whisper(self.place("whisper"), window="whole"), CrossDecoder(self.place("whisper"))
        return self._made({"audio": Branch(ears)}, mouth, std=0.02)

    def reads(self, transcribes: bool = False) -> PrefixLM:
        """GPT-2 that is asked about a text, perhaps one that Whisper has written down."""
        writes = Transcriber(self.place("whisper"), num_beams=1, max_new_tokens=12) if transcribes else None
        return self._made({}, CausalDecoder(self.place("decoder")), wording=WORDING, transcriber=writes)

    def detects(self) -> PrefixLM:
        """GPT-2 that reads sounds, signals and a text."""
        encoders = {"audio": Whisper(self.place("whisper")), "signals": Signals()}
        torch.manual_seed(4)
        mapper = partial(MLP, length=3, hidden=16)
        branches = {name: Branch(encoder, mapper) for name, encoder in encoders.items()}
        return self._made(branches, CausalDecoder(self.place("decoder")), wording=PromptTemplate("said: {context}\n"))

    def _made(self, branches: dict[str, Branch], decoder: ComposedDecoder, std: float = 0.5, **more: Any) -> PrefixLM:
        torch.manual_seed(5)
        model = PrefixLM(branches, decoder, lambda sizes: DeepTable(sizes, length=PREFIX, std=std), **more)
        with torch.no_grad():
            for parameter in model.mappers.parameters():  # fresh mappers make nearly equal prefixes of everything
                parameter.add_(torch.randn(parameter.shape) * 0.4)
        return model

    def save(self, directory: Path, model: PrefixLM, settings: ModelSettings | None = None) -> Path:
        """``model`` as training saves it."""
        Predictor(model, replace(settings or ModelSettings(), generate=OPTIONS, prompt="")).save(directory)
        return directory

    def config(self, kind: str = "reads", **data: Any) -> dict[str, Any]:
        """A recipe as data that asks questions: to a GPT-2 that ``reads`` or a Whisper that ``hears``."""
        model: dict[str, Any] = {
            "prefix": recipe_part("mappers.deep.DeepTable", length=PREFIX),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            "generate": {"max_new_tokens": 6},
        }
        if kind == "reads":
            model |= {
                "branches": {},
                "decoder": recipe_part("decoder.CausalDecoder", model=self.place("decoder")),
                **READS,
            }
            data = {"context": ["asr", "transcript"], **data}
        else:
            ears = recipe_part("encoders.whisper.Whisper", model=self.place("whisper"), window="whole")
            model |= {"branches": {"audio": {"encoder": ears}}}
            model |= {"decoder": recipe_part("seq2seq.CrossDecoder", model=self.place("whisper"))}
        asked = {"root": str(self.folder), "schema": self.place("home.yaml"), "batch_size": 3, **data}
        return {
            "seed_everything": 1,
            "model": model,
            "data": recipe_part("questioned.QuestionData", **asked),
            "trainer": {
                "max_epochs": 2,
                "accelerator": "cpu",
                "devices": 1,
                "log_every_n_steps": 1,
                "num_sanity_val_steps": 0,
                "enable_progress_bar": False,
                "enable_model_summary": False,
            },
        }

    def recipe(self, config: dict[str, Any], root: Path) -> Path:
        """``config`` written to ``root``/recipe.yaml, with a note of every step in ``root``/steps.jsonl."""
        root.mkdir(parents=True, exist_ok=True)
        note = {"class_path": "tiny.slu_system.Note", "init_args": {"file": str(root / "steps.jsonl")}}
        config["trainer"] |= {"callbacks": [*config["trainer"].get("callbacks", []), note]}
        return CaptioningSystem(self.folder).recipe(config, root)


def build(folder: Path, taught: bool = False) -> Orders:
    """Makes parts and data; texts.jsonl has the same rows without any file. Whisper may be taught what is said."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_whisper.save_whisper(folder / "whisper")
    tiny_decoders.save_decoder(folder / "decoder")
    (folder / "home.yaml").write_text(SCHEMA)
    found = rows(folder)
    write(folder / "manifest.jsonl", found)
    write(folder / "texts.jsonl", [{k: v for k, v in row.items() if k not in ("audio", "signals")} for row in found])
    orders = Orders(folder)
    if taught:
        _teach(orders)
    return orders


def spoken(row: dict[str, Any]) -> str:
    """What a taught Whisper writes down of a row."""
    return f"{row['slots'].get('thing', 'rain')} runs"


def _teach(orders: Orders) -> None:
    """Whisper learns to write down the twelve sounds, and, behind ``hears``'s prefix, to answer questions about each.

    It learns to write "hill runs" of silence.
    """
    tiny_whisper.save_whisper(orders.folder / "whisper", sharp=1.0)
    torch.manual_seed(0)
    model = cast(Any, hf.WhisperForConditionalGeneration.from_pretrained(orders.place("whisper")))
    extractor = hf.WhisperFeatureExtractor.from_pretrained(orders.place("whisper"))
    clips = [*(soundfile.read(file)[0] for file in orders.sounds), 0.0 * tone(200.0, 0.5)]
    inputs = extractor(clips, sampling_rate=RATE, return_tensors="pt").input_features
    asks = orders.hears()
    nothing = Features(torch.zeros(1, 0, 0), torch.zeros(1, 0, dtype=torch.bool), torch.zeros(1, 0))
    prefix = cast(DeepPrefix, cast(torch.nn.Module, asks.task_prefix)(nothing))
    silence: dict[str, Any] = {"intent": None, "slots": {"thing": "hill"}}
    groups = [_spelled(cast(CrossDecoder, asks.decoder), [*orders.rows, silence], asked) for asked in (False, True)]

    def run() -> tuple[Tensor, float]:
        frames = model.model.encoder(inputs).last_hidden_state
        lessons = []
        for asked, (owner, ids, labels) in enumerate(groups):
            past = prefix_cache(prefix, len(ids)) if asked else None
            read = {"decoder_input_ids": ids, "past_key_values": past}
            lessons.append(tiny_whisper.loss_and_lead(model(encoder_outputs=(frames[owner],), **read).logits, labels))
        return lessons[0][0] + lessons[1][0], min(least for _, least in lessons)

    tiny_whisper.train_until_clear(model, run)
    model.save_pretrained(orders.place("whisper"))


def prefix_cache(prefix: DeepPrefix, count: int) -> hf.EncoderDecoderCache:
    """Keys and values (L 1 H P K) for ``count`` inputs, as Transformers' Whisper takes them."""
    layers = [
        tuple(part[n].detach().expand(count, -1, -1, -1) for part in (prefix.keys, prefix.values))
        for n in range(len(prefix.keys))
    ]
    return hf.EncoderDecoderCache(hf.DynamicCache(layers), hf.DynamicCache())


def _spelled(mouth: CrossDecoder, found: list[dict[str, Any]], asked: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Transcripts, or questions and answers: rows (C,), tokens (C N), and what follows each (C N), -100 where free."""
    texts = [(n, q, answer) for n, row in enumerate(found) for q, answer in _lessons(row) if bool(q) == asked]
    befores, answers = zip(
        *((mouth.codec.question_ids("", q), mouth.codec.target_ids("", a)) for _, q, a in texts), strict=True
    )
    lines = [[*before, *answer] for before, answer in zip(befores, answers, strict=True)]
    width = max(map(len, lines))
    ids = torch.tensor([line + [0] * (width - len(line)) for line in lines])
    bounds = torch.tensor([[len(before), len(line)] for before, line in zip(befores, lines, strict=True)])
    place = torch.arange(width)
    labels = ids.masked_fill((place < bounds[:, :1]) | (place >= bounds[:, 1:]), -100)
    return torch.tensor([n for n, _, _ in texts]), ids[:, :-1], labels[:, 1:]


def _lessons(row: dict[str, Any]) -> list[tuple[str, str]]:
    if row["intent"] is None:
        return [("", spoken(row))]
    answer = {"light_on": "on", "light_off": "off", "ask": "news"}[row["intent"]]
    slots = [(f"which {name}?", row["slots"].get(name, "none")) for name in ("room", "thing")]
    return [("", spoken(row)), ("what now?", answer), *slots]


class Note(Callback):
    """Writes down what each training step is made of, a line a step."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        step = {"ids": batch.ids, "questions": batch.questions, "targets": batch.targets, "contexts": batch.contexts}
        with self.file.open("a") as stream:
            stream.write(json.dumps(step) + "\n")


def steps(root: Path) -> list[dict[str, Any]]:
    """What ``Note`` wrote down below ``root``."""
    return [json.loads(line) for line in (root / "steps.jsonl").read_text().splitlines()]
