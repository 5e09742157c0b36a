"""Prefix-AAC's checkpoints (https://github.com/MinkyuKim26/Prefix_AAC_ICASSP2023): encoder, mappers, GPT-2 and head.

Keys: audio_encoder.*, temporal_mappingnetwork.*, global_mappingnetwork.*, gpt.* and language_header.weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.word_level import WordDecoder
from mmprefix.encoders import panns
from mmprefix.encoders.base import EncoderMode
from mmprefix.encoders.panns import Cnn14
from mmprefix.errors import InputError
from mmprefix.importers.tensor_map import TensorMap, check, fill, language_model, same, slots, without_buffers
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.prefix_aac import PrefixAAC, sinusoids
from mmprefix.model import Branch, PrefixLM
from mmprefix.weights import untrusted


@dataclass(frozen=True)
class Trained:
    """What the tensors of a model do not tell: the seconds it hears, how of longer clips, a ReLU in its mappers."""

    seconds: float
    longer: str
    relu: bool


def prefix_aac(
    given: dict[str, Tensor], file: str, trained: Trained, decoder: str, words: list[str] | None = None, heads: int = 8
) -> PrefixLM:
    """The model in Prefix-AAC's tensors, its tuned encoder included; ``words``: of its own vocabulary, if it has one.

    Raises InputError for tensors that are not Prefix-AAC's, and words that are not as many as its head writes.
    """
    given = without_buffers(given)
    if "language_header.weight" not in given or given["language_header.weight"].ndim != 2:
        raise InputError(f"{file}: holds no matrix 'language_header.weight'; is it a checkpoint of Prefix-AAC?")
    lm = _aac_decoder(given, file, decoder, words, frozen=True)
    model = _aac_model(given, file, trained, lm, heads)
    constants = {
        name: value
        for name, value in given.items()
        if name.startswith("audio_encoder.spectrogram_extractor.") or name.endswith("pos_encoder.pe")
    }
    _refuse_other_constants(model, constants, file)
    rest = {name: value for name, value in given.items() if name not in constants}
    has_gpt = any(name.startswith("gpt.") for name in rest)
    check([*aac_slots(model), *(language_model(lm, whole=False) if has_gpt else [])], rest, file, "Prefix-AAC")
    if has_gpt and not same(language_model(lm, whole=False), rest):
        model.decoder = _aac_decoder(given, file, decoder, words, frozen=False)
        fill(language_model(model.decoder, whole=False), rest)
    fill(aac_slots(model), rest)
    return model


def aac_slots(model: PrefixLM) -> list[TensorMap]:
    """The slots of encoder, mappers and output head by Prefix-AAC's names."""
    encoder, decoder = cast(Cnn14, model.encoder("audio")), cast(ComposedDecoder, model.decoder)
    temporal, overall = cast(Parallel, model.mappers["audio"]).mappers
    assert decoder.own_head is not None
    return [
        *slots("audio_encoder.", panns.tensors_of(encoder.net)),
        *_mapper_slots(
            "temporal_mappingnetwork.", cast(PrefixAAC, temporal), encoder.dim // encoder.init_args["channels"][-1]
        ),
        *_mapper_slots("global_mappingnetwork.", cast(PrefixAAC, overall), cast(PrefixAAC, overall).size),
        *slots("language_header.", decoder.own_head.state_dict()),
    ]


def _mapper_slots(prefix: str, mapper: PrefixAAC, kernel: int) -> list[TensorMap]:
    """A mapper's slots; its first layer is a convolution there, over ``kernel`` bands or values of the summary."""
    found = []
    for name, value in mapper.state_dict().items():
        theirs = name.replace("norm.", "bn_conv.") if name.startswith("norm.") else name.replace("project.", "conv.", 1)
        theirs = name if name.startswith("transformer.") else theirs
        shape = tuple(value.shape)
        if name == "project.weight":
            shape = (shape[0], shape[1] // kernel, 1, kernel)
        found.append(TensorMap(prefix + theirs, shape, value))
    return found


def _aac_decoder(
    given: Mapping[str, Tensor], file: str, name: str, words: list[str] | None, frozen: bool
) -> ComposedDecoder:
    count = given["language_header.weight"].shape[0]
    if words is not None and len(words) != count:
        raise InputError(f"--vocabulary: has {len(words)} words, but the head of {file} writes {count}")
    if words is not None:
        return WordDecoder(name, words, frozen=frozen, as_published=True)
    decoder = CausalDecoder(name, stop=".", frozen=frozen, train_head=True)
    rows = cast(Any, decoder.own_head).out_features
    if rows != count:
        raise InputError(
            f"{file}: its head writes {count} words and not the {rows} tokens of {name!r}; "
            "give the list of its words: --vocabulary FILE (the authors' repository has it)"
        )
    return decoder


def _aac_model(
    given: Mapping[str, Tensor], file: str, trained: Trained, decoder: ComposedDecoder, heads: int
) -> PrefixLM:
    try:
        classes = given["audio_encoder.fc_audioset.weight"].shape[0]
        blocks = sorted({int(name[24:].split(".")[0]) for name in given if name.startswith("audio_encoder.conv_block")})
        widths = tuple(given[f"audio_encoder.conv_block{i}.conv1.weight"].shape[0] for i in blocks)
        bands = given["audio_encoder.bn0.weight"].shape[0]
        encoder = Cnn14(
            None, rate=16000, reading="prefix-aac", seconds=trained.seconds, longer=cast(Any, trained.longer),
            mels=bands, channels=widths, classes=classes,
        )  # fmt: skip
        temporal, overall = (
            _aac_mapper(given, f"{kind}_mappingnetwork", reads, encoder, trained.relu, heads)
            for kind, reads in (("temporal", "frames"), ("global", "summary"))
        )
    except InputError as error:  # sizes that no model can have
        raise InputError(f"{file}: {error}") from error
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{file}: lacks a tensor or a dimension of Prefix-AAC ({error})") from error
    encoder.set_mode(EncoderMode.TUNED)
    mappers: list[Callable[[Sizes], Mapper]] = [lambda sizes: temporal, lambda sizes: overall]
    return PrefixLM({"audio": Branch(encoder, lambda sizes: Parallel(sizes, mappers=mappers))}, decoder)


def _aac_mapper(
    given: Mapping[str, Tensor], name: str, reads: str, encoder: Cnn14, relu: bool, heads: int
) -> PrefixAAC:
    length, width = given[f"{name}.prefix_const"].shape
    layers = {key.split(".")[3] for key in given if key.startswith(f"{name}.transformer.layers.")}
    kernel = given[f"{name}.conv.weight"].shape[-1]
    return PrefixAAC(
        Sizes(encoder.dim, encoder.pooled_dim, width), reads=cast(Any, reads), length=length, layers=len(layers),
        heads=heads, relu=relu, pieces=-(-encoder.pooled_dim // kernel),
    )  # fmt: skip


def _refuse_other_constants(model: PrefixLM, constants: Mapping[str, Tensor], file: str) -> None:
    """What the published code computes and saves all the same must be what is computed here."""
    spectrum = {name.removeprefix("audio_encoder."): value for name, value in constants.items()}
    panns.refuse_other_spectrum(cast(Cnn14, model.encoder("audio")).net, spectrum, file)
    for name, value in constants.items():
        if name.endswith("pos_encoder.pe") and not (
            value.ndim == 3
            and value.shape[1] == 1
            and torch.allclose(value.float(), sinusoids(value.float().transpose(0, 1))[:, None], atol=1e-3)
        ):
            raise InputError(f"{file}: the positions in {name!r} are not sinusoids")


def aac_tensors(source: str) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a whole checkpoint, or of a folder with one file for each trained part (as the authors give both).

    Raises InputError for a folder that lacks a part.
    """
    path = untrusted.fetch_file(source)
    if path.is_file():
        return untrusted.read_tensors(path), path
    found: dict[str, Tensor] = {}
    for part in ("audio_encoder", "temporal_mappingnetwork", "global_mappingnetwork", "language_header"):
        files = sorted(path.glob(f"{part}*.pt"))
        if len(files) != 1:
            raise InputError(f"{path}: expected one file {part}*.pt in the folder, found {len(files)}")
        for name, value in untrusted.read_tensors(files[0]).items():
            found[name if name.startswith(f"{part}.") else f"{part}.{name}"] = value
    return found, path
