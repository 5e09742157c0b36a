"""Device-directed speech: what each input tells alone, all together, and one model for every subset of them.

    python -m benchmarks.studies.device_directed ../shared/data --sets ddsd_tts wakewords --out device_directed.json

Transcripts and signals come from the recipe's own small Whisper. Text alone, audio alone, signals alone and all three
are each trained for themselves, and one model with modality dropout is tested on each subset; three seeds each. Beside
them stands logistic regression on the words of the transcript, and on the mean and spread of the log-mel bands.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import mmprefix
from mmprefix.cli.main import main as shell
from mmprefix.media.audio import read_waveform
from mmprefix.metrics import detection

RECIPES = Path(__file__).parents[2] / "recipes"
SUBSETS = {"text": ("text",), "audio": ("audio",), "signals": ("signals",), "all": ("audio", "signals", "text")}
Row = dict[str, Any]


def transcribed(recipe: Mapping[str, Any], root: Path, folder: Path) -> list[Row]:
    """The rows of the data set with what the recipe's Whisper makes of each: ``asr`` and ``signals``."""
    whisper = recipe["model"]["branches"]["audio"]["encoder"]["init_args"]["model"]
    out = folder / "asr.jsonl"
    if shell(["transcribe", whisper, "--manifest", str(root / "manifest.jsonl"), "--max-new-tokens", "40",
              "--batch-size", "16", "--out", str(out)]):  # fmt: skip
        raise SystemExit("the transcription failed")
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def train(
    recipe: dict[str, Any], rows: Sequence[Row], inputs: Sequence[str], dropout: float, seed: int, folder: Path
) -> Any:
    """A model that reads ``inputs``, trained on the rows of split train."""
    made = json.loads(json.dumps(recipe))
    model = made["model"]
    model["branches"] = {name: branch for name, branch in model["branches"].items() if name in inputs}
    if "audio" in model["branches"]:
        model["branches"]["audio"]["encoder"]["class_path"] = "benchmarks.lib.cached_encoders.CachedWhisper"
    if "text" not in inputs:
        model["wording"] = {}
        del made["data"]["init_args"]["context"]
    model["modality_dropout"] = dropout
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows if row["split"] == "train"), encoding="utf-8")
    made["data"]["init_args"] |= {"train": str(file), "val": None, "seed": seed}
    made |= {"seed_everything": seed, "save_to": str(folder / "model")}
    made["trainer"] |= {"default_root_dir": str(folder), "enable_progress_bar": False, "enable_model_summary": False,
                        "logger": False, "enable_checkpointing": False}  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    if shell(["fit", "--config", str(folder / "recipe.yaml")]):
        raise SystemExit("the training failed")
    return mmprefix.load(folder / "model")


def test(model: Any, rows: Sequence[Row], inputs: Sequence[str], target: str, positive: str) -> dict[str, float]:
    """EER and AUC of ``model`` where only ``inputs`` are given."""
    given = [{name: row[name] for name in inputs if name != "text"} for row in rows]
    for one in given:
        one.update({"signals": tuple(one["signals"])} if "signals" in one else {})
    contexts = [row["asr"] for row in rows] if "text" in inputs else None
    files = given if any(given) else None
    scores = model.detect(files, context=contexts, batch_size=32)
    found = detection(scores, [label(row[target]) == positive for row in rows])
    return {"eer": found["eer"], "auc": found["auc"]}


def label(value: Any) -> str:
    """A label as the recipe writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def plain(train_rows: Sequence[Row], rows: Sequence[Row], target: str, positive: str) -> dict[str, dict[str, float]]:
    """Logistic regression on the transcript's words, and on statistics of the sound."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known, truth = ([label(row[target]) == positive for row in part] for part in (train_rows, rows))
    words = make_pipeline(
        TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=1000)
    )
    sound = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    found = {}
    for name, pipe, read in (("words", words, lambda row: row["asr"]), ("spectrum", sound, spectrum)):
        pipe.fit([read(row) for row in train_rows], known)
        scores = pipe.decision_function([read(row) for row in rows])
        figures = detection([float(score) for score in scores], truth)
        found[name] = {"eer": figures["eer"], "auc": figures["auc"]}
    return found


def spectrum(row: Row) -> np.ndarray:
    """Mean and deviation of 40 log-mel bands, (80,)."""
    from torchaudio.functional import melscale_fbanks

    values = read_waveform(row["audio"], 16000)
    power = torch.stft(values, 512, 256, window=torch.hann_window(512), return_complex=True).abs().square()
    bands = (melscale_fbanks(257, 0.0, 8000.0, 40, 16000).T @ power + 1e-8).log()
    return torch.cat([bands.mean(1), bands.std(1)]).numpy()


def say(runs: Sequence[Mapping[str, float]], key: str) -> str:
    """Mean and deviation over the seeds, in per cent."""
    values = [100 * run[key] for run in runs]
    return f"{statistics.mean(values):5.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:4.1f}"


def main() -> None:
    """Trains, tests, and prints a table and a JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that holds ddsd_tts and wakewords")
    parser.add_argument("--sets", nargs="+", default=["ddsd_tts", "wakewords"], help="recipes, called like their data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    for name in args.sets:
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        target, positive = recipe["data"]["init_args"]["target"], recipe["model"]["answers"][0]
        with tempfile.TemporaryDirectory() as place:
            rows = transcribed(recipe, args.data / name, Path(place))
        known, held = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
        found: dict[str, list[dict[str, float]]] = {}
        for seed in args.seeds:
            for subset, inputs in SUBSETS.items():
                with tempfile.TemporaryDirectory() as place:
                    model = train(recipe, rows, inputs, 0.0, seed, Path(place))
                    found.setdefault(f"own {subset}", []).append(test(model, held, inputs, target, positive))
            with tempfile.TemporaryDirectory() as place:
                model = train(recipe, rows, SUBSETS["all"], recipe["model"]["modality_dropout"], seed, Path(place))
                for subset, inputs in SUBSETS.items():
                    found.setdefault(f"one {subset}", []).append(test(model, held, inputs, target, positive))
        trivial = plain(known, held, target, positive)
        report[name] = {"test": len(held), "targets": sum(label(row[target]) == positive for row in held),
                        "runs": found, "logistic_regression": trivial}  # fmt: skip
        print(f"{name}: {len(held)} test rows, {report[name]['targets']} of them targets")
        print(f"{'':10} {'trained for it: EER %':>22} {'AUC %':>13} {'one model for all: EER %':>26} {'AUC %':>13}")
        for subset in SUBSETS:
            own, one = found[f"own {subset}"], found[f"one {subset}"]
            print(
                f"{subset:10} {say(own, 'eer'):>22} {say(own, 'auc'):>13} {say(one, 'eer'):>26} {say(one, 'auc'):>13}"
            )
        for kind, figures in trivial.items():
            print(f"logistic regression on {kind}: EER {100 * figures['eer']:.1f} %, AUC {100 * figures['auc']:.1f} %")
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
