"""Zero-shot understanding: the frozen parts of a recipe are asked without prefix and mappers, the baseline of training.

    python -m benchmarks.studies.zero_shot ../shared/data slu_whisper_tts --intents
    python -m benchmarks.studies.zero_shot ../shared/data slu_whisper_tts --set_of barista --schema barista

Prints the figures of ``mmprefix evaluate --task slu`` beside those of the commonest answers, and CPU seconds a clip.
``--silence`` and ``--window`` measure what a shorter window of Whisper's encoder does to answers and time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from benchmarks.studies.understanding import RECIPES, TestSet, read_rows, rounded
from mmprefix.inference.untrained import load_recipe
from mmprefix.slu.schema import read_schema


def main(argv: Sequence[str] | None = None) -> None:
    """Answer all test rows and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help="folder with slurp_tts, barista ...")
    parser.add_argument("recipe", help="a recipe whose parts are asked, such as slu_whisper_tts")
    parser.add_argument("--set_of", help="folder of the data set (default: the recipe's)")
    parser.add_argument("--schema", help="a shipped schema or a file (default: the recipe's)")
    parser.add_argument("--intents", action="store_true", help="ask about intents alone")
    parser.add_argument("--silence", help="seconds of silence behind the sound, or none for the whole window")
    parser.add_argument("--window", choices=("whole", "filled"), help="frames that the decoder reads (see Whisper)")
    parser.add_argument("--rows", type=int, metavar="N", help="only the first rows of the split")
    parser.add_argument("--split", default="test")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    file = RECIPES / f"{options.recipe}.yaml"
    recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    data = recipe["data"]["init_args"]
    encoder = recipe["model"]["branches"]["audio"]["encoder"]["init_args"]
    if options.silence is not None:
        encoder["silence"] = None if options.silence == "none" else float(options.silence)
    if options.window is not None:
        encoder["window"] = options.window
    schema, root = read_schema(options.schema or data["schema"]), options.data / (options.set_of or data["root"])
    schema = schema.only(slots=[]) if options.intents else schema
    rows = read_rows(root / "manifest.jsonl", options.split)[: options.rows]
    test = TestSet(root, rows, schema, data.get("intent_field", "intent"), [None])
    model, start = load_recipe(recipe, file, device="cpu"), time.process_time()
    figures = test.predict(model, None)
    seconds = (time.process_time() - start) / len(rows)
    commonest = test.majority(read_rows(root / "manifest.jsonl", "train"))
    if options.intents:  # slots that nobody asked about are no answers
        figures, commonest = ({"intent_accuracy": each["intent_accuracy"]} for each in (figures, commonest))
    print(f"{len(rows)} rows, {seconds:.2f} CPU s a row: {rounded(figures, 3)}; commonest {rounded(commonest, 3)}")


if __name__ == "__main__":
    main()
