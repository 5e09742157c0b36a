"""Examples of the verbs: one command for each, printed at the end of its ``--help``; tests parse and run them."""

from __future__ import annotations

EXAMPLES: dict[str, str] = {
    "fit": "mmprefix fit quickstart --trainer.max_epochs 5",
    "validate": "mmprefix validate quickstart --ckpt_path best",
    "test": "mmprefix test quickstart --ckpt_path best",
    "predict": "mmprefix predict quickstart --ckpt_path best --out predictions.jsonl",
    "encode": "mmprefix encode quickstart --cache features",
    "caption": "mmprefix caption runs/quickstart/model runs/quickstart/samples --num-beams 3 --out captions.csv",
    "understand": "mmprefix understand runs/slu_whisper/model order.wav --schema slurp --json",
    "detect": "mmprefix detect runs/ddsd/model --manifest test.jsonl --out scores.jsonl",
    "transcribe": "mmprefix transcribe openai/whisper-small recording.mp3 --language en --out texts.jsonl",
    "demo": "mmprefix demo runs/quickstart/model",
    "serve": "mmprefix serve runs/quickstart/model --port 8000",
    "distil": "mmprefix distil runs/personal_kilogram/model --users users.db --positions 16",
    "inspect": "mmprefix inspect runs/quickstart/model runs/quickstart/samples/image-0000.png --out maps",
    "evaluate": "mmprefix evaluate predictions.jsonl --html predictions.html",
    "report": "mmprefix report runs/quickstart --out quickstart.html",
    "import": "mmprefix import clipcap coco_weights.pt models/clipcap --encoder ViT-B-32 --pretrained openai "
    "--normalize no",
    "prepare": "mmprefix prepare captions.csv --media-root photos --out data",
    "check-data": "mmprefix check-data data/train.jsonl data/val.jsonl --json",
    "users": "mmprefix users add users.db u07 --history my_captions.txt",
    "parts": "mmprefix parts MLP --json",
    "recipes": "mmprefix recipes quickstart --out my.yaml",
    "doctor": "mmprefix doctor --devices",
    "completion": "mmprefix completion bash > ~/.local/share/bash-completion/completions/mmprefix",
}


def epilog(verb: str) -> str:
    """Last lines of the help of ``verb``; empty for a verb without an example."""
    return f"example:\n  {EXAMPLES[verb]}" if verb in EXAMPLES else ""
