"""Folder of a drafter: its tensors, and a record of the decoder that it drafts for."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from mmprefix.atomic import write_directory_atomically
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError
from mmprefix.generation.drafting.bita import Drafter

_WEIGHTS, _RECORD = "drafter.safetensors", "drafter.json"


def save_drafter(directory: Path, drafter: Drafter, decoder: ComposedDecoder) -> None:
    """Write ``drafter`` to ``directory`` whole or not at all; ``decoder`` is the one that it was trained for."""
    masks, length = len(drafter.masks), drafter.keys.shape[2]
    record = {"decoder": decoder.identity.source, "sha256": decoder.identity.sha256, "masks": masks, "length": length}

    def write(folder: Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in drafter.state_dict().items()}
        save_file(tensors, folder / _WEIGHTS)
        (folder / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    write_directory_atomically(directory, write)


def load_drafter(directory: Path, decoder: ComposedDecoder) -> Drafter:
    """Drafter of ``directory`` for ``decoder``; InputError where it was trained for another, or is none."""
    try:
        record = json.loads((directory / _RECORD).read_text(encoding="utf-8"))
        masks, length = int(record["masks"]), int(record["length"])
        tensors = load_file(directory / _WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{directory}: is no folder of a drafter ({error})") from error
    if record.get("sha256") != decoder.identity.sha256:
        raise InputError(
            f"{directory}: drafts for the decoder {record.get('decoder')!r}, and this is another, "
            f"{decoder.identity.source!r}; train one for it"
        )
    sizes = (decoder.width, decoder.layers, decoder.heads, decoder.head_width)
    drafter = Drafter(*sizes, masks=masks, length=length)
    drafter.load_state_dict(tensors)
    return drafter.to(decoder.language_model.device).eval()
