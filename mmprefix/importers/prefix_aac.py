"""Importer of Prefix-AAC's checkpoints (https://github.com/MinkyuKim26/Prefix_AAC_ICASSP2023).

Encoder, mappers, GPT-2 and head. Names: audio_encoder.*, temporal_mappingnetwork.*, global_mappingnetwork.*, gpt.* and
language_header.weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.word_level import WordDecoder
from mmprefix.encoders import panns
from mmprefix.encoders.base import EncoderMode
from mmprefix.encoders.panns import Cnn14
from mmprefix.errors import InputError
from mmprefix.importers.tensor_map import (
    TensorMap,
    check,
    fill,
    is_equal,
    language_model_maps,
    tensor_maps,
    without_buffers,
)
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.prefix_aac import PrefixAAC, sinusoids
from mmprefix.model import Branch, PrefixLM
from mmprefix.weights import untrusted


@dataclass(frozen=True)
class Trained:
    """Properties of a model that its tensors do not determine.

    ``seconds`` of audio that it reads, ``longer``: treatment of longer clips, ``relu``: a ReLU in its mappers.
    """

    seconds: float
    longer: Literal["cut", "compress"]
    relu: bool


@dataclass(frozen=True)
class _Checkpoint:
    """Tensors by name, and the file that they are from, for error messages."""

    tensors: Mapping[str, Tensor]
    file: str


def prefix_aac(
    tensors: dict[str, Tensor],
    file: str,
    trained: Trained,
    *,
    decoder: str,
    words: list[str] | None = None,
    heads: int = 8,
) -> PrefixLM:
    """Build the model from Prefix-AAC's tensors, tuned encoder included; ``words`` is its own vocabulary, if any.

    Raises InputError for tensors that are not Prefix-AAC's, and for a number of words that is not that of its head.
    """
    tensors = without_buffers(tensors)
    if "language_header.weight" not in tensors or tensors["language_header.weight"].ndim != 2:
        raise InputError(f"{file}: holds no matrix 'language_header.weight'; is it a checkpoint of Prefix-AAC?")
    checkpoint = _Checkpoint(tensors, file)
    lm = _build_decoder(checkpoint, decoder, words, frozen=True)
    model = _build_model(checkpoint, trained, lm, heads)
    constants = {
        name: value
        for name, value in tensors.items()
        if name.startswith("audio_encoder.spectrogram_extractor.") or name.endswith("pos_encoder.pe")
    }
    _require_equal_constants(model, constants, file)
    weights = {name: value for name, value in tensors.items() if name not in constants}
    has_gpt = any(name.startswith("gpt.") for name in weights)
    lm_maps = language_model_maps(lm, whole=False) if has_gpt else []
    check([*aac_maps(model), *lm_maps], weights, file, "Prefix-AAC")
    if has_gpt and not is_equal(lm_maps, weights):
        tuned = model.decoder = _build_decoder(checkpoint, decoder, words, frozen=False)
        fill(language_model_maps(tuned, whole=False), weights)
    fill(aac_maps(model), weights)
    return model


def aac_maps(model: PrefixLM) -> list[TensorMap]:
    """Maps of encoder, mappers and output head to Prefix-AAC's names."""
    encoder, mapper, decoder = model.encoder("audio"), model.mapper("audio"), model.decoder
    assert isinstance(encoder, Cnn14)
    assert isinstance(mapper, Parallel)
    assert isinstance(decoder, ComposedDecoder)
    temporal, overall = mapper.mappers
    assert isinstance(temporal, PrefixAAC)
    assert isinstance(overall, PrefixAAC)
    bands = encoder.dim // encoder.init_args["channels"][-1]
    return [
        *tensor_maps("audio_encoder.", panns.tensors_of(encoder.net)),
        *_mapper_maps("temporal_mappingnetwork.", temporal, bands),
        *_mapper_maps("global_mappingnetwork.", overall, overall.size),
        *tensor_maps("language_header.", decoder.get_submodule("own_head").state_dict()),
    ]


def _mapper_maps(prefix: str, mapper: PrefixAAC, kernel: int) -> list[TensorMap]:
    """Maps of a mapper; in the file its first layer is a convolution over ``kernel`` bands or values of the summary."""
    maps: list[TensorMap] = []
    for name, value in mapper.state_dict().items():
        theirs = name.replace("norm.", "bn_conv.") if name.startswith("norm.") else name.replace("project.", "conv.", 1)
        theirs = name if name.startswith("transformer.") else theirs
        shape = tuple(value.shape)
        if name == "project.weight":
            shape = (shape[0], shape[1] // kernel, 1, kernel)
        maps.append(TensorMap(prefix + theirs, shape, value))
    return maps


def _build_decoder(checkpoint: _Checkpoint, name: str, words: list[str] | None, frozen: bool) -> ComposedDecoder:
    """Decoder over the language model ``name`` with a head of the checkpoint's size."""
    count = checkpoint.tensors["language_header.weight"].shape[0]
    if words is not None and len(words) != count:
        raise InputError(f"--vocabulary: has {len(words)} words, but the head of {checkpoint.file} has {count}")
    if words is not None:
        return WordDecoder(name, words, frozen=frozen, as_published=True)
    decoder = CausalDecoder(name, stop=".", frozen=frozen, train_head=True)
    rows = decoder.language_model.head.out_features
    if rows != count:
        raise InputError(
            f"{checkpoint.file}: its head has {count} words, not the {rows} tokens of {name!r}; "
            "give the list of its words: --vocabulary FILE (the authors' repository has it)"
        )
    return decoder


def _build_model(checkpoint: _Checkpoint, trained: Trained, decoder: ComposedDecoder, heads: int) -> PrefixLM:
    """Model of the sizes that the tensors have, its weights not filled yet."""
    tensors, file = checkpoint.tensors, checkpoint.file
    block = "audio_encoder.conv_block"
    try:
        classes = tensors["audio_encoder.fc_audioset.weight"].shape[0]
        blocks = sorted({int(name.removeprefix(block).split(".")[0]) for name in tensors if name.startswith(block)})
        widths = tuple(tensors[f"{block}{i}.conv1.weight"].shape[0] for i in blocks)
        bands = tensors["audio_encoder.bn0.weight"].shape[0]
        encoder = Cnn14(
            None, rate=16000, reading="prefix-aac", seconds=trained.seconds, longer=trained.longer, mels=bands,
            channels=widths, classes=classes,
        )  # fmt: skip
        temporal = _build_mapper(tensors, "frames", encoder, heads=heads, relu=trained.relu)
        overall = _build_mapper(tensors, "summary", encoder, heads=heads, relu=trained.relu)
    except InputError as error:  # sizes that no model can have
        raise InputError(f"{file}: {error}") from error
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{file}: lacks a tensor or a dimension of Prefix-AAC ({error})") from error
    encoder.set_mode(EncoderMode.TUNED)
    mappers: list[Callable[[Sizes], Mapper]] = [lambda sizes: temporal, lambda sizes: overall]
    return PrefixLM({"audio": Branch(encoder, lambda sizes: Parallel(sizes, mappers=mappers))}, decoder)


def _build_mapper(
    tensors: Mapping[str, Tensor], reads: Literal["frames", "summary"], encoder: Cnn14, *, heads: int, relu: bool
) -> PrefixAAC:
    """Temporal (``frames``) or global (``summary``) mapper of the sizes that the tensors have."""
    name = "temporal_mappingnetwork" if reads == "frames" else "global_mappingnetwork"
    length, width = tensors[f"{name}.prefix_const"].shape
    layers = {key.split(".")[3] for key in tensors if key.startswith(f"{name}.transformer.layers.")}
    kernel = tensors[f"{name}.conv.weight"].shape[-1]
    return PrefixAAC(
        Sizes(encoder.dim, encoder.pooled_dim, width), reads=reads, length=length, layers=len(layers), heads=heads,
        relu=relu, pieces=-(-encoder.pooled_dim // kernel),
    )  # fmt: skip


def _require_equal_constants(model: PrefixLM, constants: Mapping[str, Tensor], file: str) -> None:
    """Raise InputError where constants that the published code saves differ from those computed here."""
    spectrum = {name.removeprefix("audio_encoder."): value for name, value in constants.items()}
    encoder = model.encoder("audio")
    assert isinstance(encoder, Cnn14)
    panns.refuse_other_spectrum(encoder.net, spectrum, file)
    for name, value in constants.items():
        if name.endswith("pos_encoder.pe") and not (
            value.ndim == 3
            and value.shape[1] == 1
            and torch.allclose(value.float(), sinusoids(value.float().transpose(0, 1))[:, None], atol=1e-3)
        ):
            raise InputError(f"{file}: the positions in {name!r} are not sinusoids")


def read_aac(source: str) -> tuple[dict[str, Tensor], Path]:
    """Tensors and path of a whole checkpoint, or of a folder with one file per trained part (the authors give both).

    Raises InputError for a folder that lacks a part.
    """
    path = untrusted.fetch_file(source)
    if path.is_file():
        return untrusted.read_tensors(path), path
    tensors: dict[str, Tensor] = {}
    for part in ("audio_encoder", "temporal_mappingnetwork", "global_mappingnetwork", "language_header"):
        files = sorted(path.glob(f"{part}*.pt"))
        if len(files) != 1:
            raise InputError(f"{path}: expected one file {part}*.pt in the folder, found {len(files)}")
        for name, value in untrusted.read_tensors(files[0]).items():
            tensors[name if name.startswith(f"{part}.") else f"{part}.{name}"] = value
    return tensors, path
