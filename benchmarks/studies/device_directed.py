"""Quality of device-directed speech detection: each input alone, all together, and one model for every subset of them.

    python -m benchmarks.studies.device_directed ../shared/data --sets ddsd_tts wakewords --out device_directed.json
    python -m benchmarks.studies.device_directed ../shared/data --sets ddsd_whisper_tts --models one --transcripts runs
    python -m benchmarks.studies.device_directed ../shared/data --sets ddsd_whisper_tts --models own --only audio

Transcripts and signals come from the recipe's own Whisper, or from FOLDER/NAME_asr/manifest.jsonl with ``--transcripts
FOLDER``. One model with modality dropout is tested on every subset of text, audio and signals ("one"); each subset may
get a model of its own besides ("own"). ``--only`` names the subsets; nothing is transcribed where none has text or
signals. Three seeds each. Baselines are logistic regressions on the words of the transcript, and on mean and deviation
of the log-mel bands.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import mmprefix
from mmprefix.cli.main import main as run_mmprefix
from mmprefix.media.audio import read_waveform
from mmprefix.metrics import detection

RECIPES = Path(__file__).parents[2] / "recipes"
SUBSETS = {
    "text": ("text",),
    "audio": ("audio",),
    "signals": ("signals",),
    "text, audio": ("audio", "text"),
    "text, signals": ("signals", "text"),
    "audio, signals": ("audio", "signals"),
    "all": ("audio", "signals", "text"),
}
ROWS_OF = {"ddsd_whisper_tts": "ddsd_tts", "wakewords_whisper": "wakewords"}
"""Data sets of the recipes that are not named like theirs."""
Row = dict[str, Any]
Recipe = dict[str, Any]


def transcribe(recipe: Mapping[str, Any], root: Path) -> list[Row]:
    """The rows of the data set below ``root``, with transcript ("asr") and "signals" by the recipe's Whisper."""
    whisper = recipe["model"]["branches"]["audio"]["encoder"]["init_args"]["model"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "asr.jsonl"
        if run_mmprefix(["transcribe", whisper, "--manifest", str(root / "manifest.jsonl"), "--max-new-tokens", "40",
                         "--batch-size", "16", "--out", str(out)]):  # fmt: skip
            raise SystemExit("the transcription failed")
        return read_rows(out)


def read_rows(manifest: Path) -> list[Row]:
    """Rows of ``manifest``, with the paths of their sounds made absolute."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return [row | {"audio": str((manifest.parent / row["audio"]).resolve())} for row in rows]


def label_text(value: Any) -> str:
    """A label as the recipe writes it: text, or JSON."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class DetectionSet:
    """Rows to train on and to test on, the field of their label, and the label that is to be detected."""

    train_rows: list[Row]
    test_rows: list[Row]
    target: str
    positive: str

    def truth(self, rows: Sequence[Row]) -> list[bool]:
        """True for each of ``rows`` that is to be detected."""
        return [label_text(row[self.target]) == self.positive for row in rows]

    def score(self, scores: Sequence[float]) -> dict[str, float]:
        """EER and AUC of ``scores`` for the test rows."""
        figures = detection(scores, self.truth(self.test_rows))
        return {"eer": figures["eer"], "auc": figures["auc"]}


def change_recipe(recipe: Recipe, inputs: Sequence[str]) -> Recipe:
    """A copy of ``recipe`` that reads ``inputs`` only, encodes each clip once, and logs nothing."""
    changed = json.loads(json.dumps(recipe))
    model = changed["model"]
    model.pop("transcriber", None)  # it would write the text that a subset is to do without
    model["branches"] = {name: branch for name, branch in model["branches"].items() if name in inputs}
    if "audio" in model["branches"]:
        model["branches"]["audio"]["encoder"]["class_path"] = "benchmarks.lib.cached_encoders.CachedWhisper"
    if "text" not in inputs:
        model["wording"] = {}
        del changed["data"]["init_args"]["context"]
    changed["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False, "logger": False,
                           "enable_checkpointing": False}  # fmt: skip
    return changed


def train(recipe: Recipe, rows: Sequence[Row], *, inputs: Sequence[str], dropout: float, seed: int) -> Any:
    """Train a model that reads ``inputs`` on ``rows``, with modality dropout ``dropout``."""
    changed = change_recipe(recipe, inputs)
    changed["model"]["modality_dropout"] = dropout
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        file = folder / "train.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        changed["data"]["init_args"].pop("root", None)
        changed["data"]["init_args"] |= {"train": str(file), "val": None, "seed": seed}
        changed |= {"seed_everything": seed, "save_to": str(folder / "model"), "overwrite": True, "no_report": True}
        changed["trainer"]["default_root_dir"] = root
        (folder / "recipe.yaml").write_text(yaml.safe_dump(changed, sort_keys=False), encoding="utf-8")
        if run_mmprefix(["fit", "--config", str(folder / "recipe.yaml")]):
            raise SystemExit("the training failed")
        return mmprefix.load(folder / "model")


def test(model: Any, data: DetectionSet, inputs: Sequence[str]) -> dict[str, float]:
    """EER and AUC of ``model`` on the test rows if it gets only ``inputs``."""
    names = [name for name in inputs if name != "text"]
    files = [{name: row[name] for name in names} for row in data.test_rows]
    for row in files:
        row.update({"signals": tuple(row["signals"])} if "signals" in row else {})
    contexts = [row["asr"] for row in data.test_rows] if "text" in inputs else None
    return data.score(model.detect(files if names else None, context=contexts, batch_size=32))


def train_and_test(
    recipe: Recipe, data: DetectionSet, *, seeds: Sequence[int], kinds: Sequence[str], subsets: Sequence[str]
) -> dict[str, list[dict[str, float]]]:
    """EER and AUC by seed: "own SUBSET" of a model for that subset, "one SUBSET" of the model for all of them."""
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        for subset in subsets if "own" in kinds else ():
            model = train(recipe, data.train_rows, inputs=SUBSETS[subset], dropout=0.0, seed=seed)
            runs.setdefault(f"own {subset}", []).append(test(model, data, SUBSETS[subset]))
        if "one" not in kinds:
            continue
        dropout = recipe["model"]["modality_dropout"]
        model = train(recipe, data.train_rows, inputs=SUBSETS["all"], dropout=dropout, seed=seed)
        for subset in subsets:
            runs.setdefault(f"one {subset}", []).append(test(model, data, SUBSETS[subset]))
    return runs


def logistic_regression(data: DetectionSet) -> dict[str, dict[str, float]]:
    """EER and AUC of logistic regressions on the transcript's "words", if there is one, and on the "spectrum"."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    words = make_pipeline(
        TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=1000)
    )
    sound = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    figures = {}
    for name, pipeline, read in (("words", words, lambda row: row["asr"]), ("spectrum", sound, spectrum)):
        if name == "words" and "asr" not in data.test_rows[0]:
            continue
        pipeline.fit([read(row) for row in data.train_rows], data.truth(data.train_rows))
        scores = pipeline.decision_function([read(row) for row in data.test_rows])
        figures[name] = data.score([float(score) for score in scores])
    return figures


def spectrum(row: Row) -> np.ndarray:
    """Mean and deviation of 40 log-mel bands, (80,)."""
    from torchaudio.functional import melscale_fbanks

    values = read_waveform(row["audio"], 16000)
    power = torch.stft(values, 512, 256, window=torch.hann_window(512), return_complex=True).abs().square()
    bands = (melscale_fbanks(257, 0.0, 8000.0, 40, 16000).T @ power + 1e-8).log()
    return torch.cat([bands.mean(1), bands.std(1)]).numpy()


def spread(runs: Sequence[Mapping[str, float]], key: str) -> str:
    """Mean and deviation over the seeds, in per cent; a dash where nothing was trained."""
    if not runs:
        return "-"
    values = [100 * run[key] for run in runs]
    return f"{statistics.mean(values):5.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:4.1f}"


def report(name: str, results: Mapping[str, Any]) -> str:
    """The table of one data set."""
    lines = [
        f"{name}: {results['test']} test rows, {results['targets']} of them targets",
        f"{'':14} {'trained for it: EER %':>22} {'AUC %':>13} {'one model for all: EER %':>26} {'AUC %':>13}",
    ]
    for subset in SUBSETS:
        own, one = (results["runs"].get(f"{kind} {subset}", []) for kind in ("own", "one"))
        own_cells, one_cells = ((spread(runs, "eer"), spread(runs, "auc")) for runs in (own, one))
        lines.append(f"{subset:14} {own_cells[0]:>22} {own_cells[1]:>13} {one_cells[0]:>26} {one_cells[1]:>13}")
    for kind, figures in results["logistic_regression"].items():
        eer, auc = 100 * figures["eer"], 100 * figures["auc"]
        lines.append(f"logistic regression on {kind}: EER {eer:.1f} %, AUC {auc:.1f} %")
    return "\n".join(lines)


def needed_rows(recipe: Recipe, name: str, options: argparse.Namespace) -> list[Row]:
    """Rows of the recipe ``name``: with transcripts and signals if a model that is to be trained reads them."""
    rows_of = ROWS_OF.get(name, name)
    if options.transcripts:
        return read_rows(options.transcripts / f"{rows_of}_asr" / "manifest.jsonl")
    if "one" in options.models or any(SUBSETS[subset] != ("audio",) for subset in options.only):
        return transcribe(recipe, options.data / rows_of)
    return read_rows(options.data / rows_of / "manifest.jsonl")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, test, print the tables, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with ddsd_tts and wakewords")
    parser.add_argument("--sets", nargs="+", default=["ddsd_tts", "wakewords"], metavar="RECIPE")
    parser.add_argument("--models", nargs="+", choices=["own", "one"], default=["own", "one"])
    parser.add_argument("--transcripts", type=Path, metavar="FOLDER", help="has NAME_asr/manifest.jsonl of each set")
    parser.add_argument("--only", nargs="+", choices=[*SUBSETS], default=[*SUBSETS], metavar="SUBSET")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in options.sets:
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        rows = needed_rows(recipe, name, options)
        train_rows, test_rows = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
        data = DetectionSet(train_rows, test_rows, recipe["data"]["init_args"]["target"], recipe["model"]["answers"][0])
        runs = train_and_test(recipe, data, seeds=options.seeds, kinds=options.models, subsets=options.only)
        results[name] = {
            "test": len(data.test_rows),
            "targets": sum(data.truth(data.test_rows)),
            "runs": runs,
            "logistic_regression": logistic_regression(data),
        }
        print(report(name, results[name]))
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
