"""Deep prompts in a frozen encoder: learned vectors beside the input of every layer; only they are trained and saved.

Visual Prompt Tuning (Jia et al.), https://arxiv.org/abs/2203.12119, the deep form: at each layer P vectors of its own
join the sequence, and what the layer makes of them is dropped. The same for sounds in an Audio Spectrogram Transformer
and Whisper's encoder, and for texts; DPTDR (https://arxiv.org/abs/2208.11503) tunes a retriever's text encoder by deep
prompts as keys and values of each layer, where here they are vectors that pass the layer's own projections.
"""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mmprefix.encoders.attention_layers import attention_layers, input_width
from mmprefix.encoders.base import Encoder, EncoderMode
from mmprefix.errors import InputError
from mmprefix.types import Features, Media


class Prompted(Encoder):
    """``encoder`` with ``length`` learned vectors at the input of every layer, behind the layer's own sequence.

    They are trained with ``UnfreezeUntil`` of the branch; the encoder inside keeps its weights and stays in evaluation
    mode. Features have the shapes of ``encoder``'s.

    Args:
        encoder: an encoder over a transformer of Hugging Face: ``ViT``, ``AST``, ``Whisper``, ``Text``.
        length: vectors of a layer.
        std: standard deviation of the vectors before training.

    Raises InputError for an encoder without such layers, and for a Whisper whose windows are filled with silence.
    """

    wraps = "encoder"

    def __init__(self, encoder: Encoder, length: int = 10, std: float = 0.02) -> None:
        super().__init__()
        if length < 1:
            raise InputError(f"Prompted.length {length}: give a number from 1 on")
        if getattr(encoder, "window", None) == "filled":
            raise InputError("Prompted.encoder: window 'filled' keeps frames of silence; give 'sound' or 'whole'")
        layers = attention_layers("Prompted.encoder", encoder)
        self.input_kind, self.preprocess, self.identity = encoder.input_kind, encoder.preprocess, encoder.identity
        self.dim, self.pooled_dim = encoder.dim, encoder.pooled_dim
        self.encoder = encoder
        self.prompts = nn.Parameter(torch.randn(len(layers), length, input_width("Prompted.encoder", layers[0])) * std)
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(_Insert(self, number), with_kwargs=True)
            layer.register_forward_hook(_Strip(self))
        self.freeze()

    @property
    def saved(self) -> bool:
        """Always True: the vectors are nobody else's."""
        return True

    @property
    def trained(self) -> tuple[str, ...]:
        """The vectors alone."""
        return ("prompts",)

    def set_mode(self, mode: EncoderMode) -> Self:
        """Set gradients of the vectors for ``mode``; the encoder inside stays frozen."""
        super().set_mode(mode)
        self.encoder.requires_grad_(False).eval()
        return self

    def encode(self, media: Media) -> Features:
        """Features of ``encoder`` with the vectors in its layers."""
        return self.encoder.encode(media)


class _Insert:
    """Hook before layer ``number``: joins its vectors to the sequence, and lets all attend to them."""

    def __init__(self, owner: Prompted, number: int) -> None:
        self.owner, self.number = owner, number

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        own = self.owner.prompts[self.number]
        if hidden.dim() != 3 or hidden.shape[2] != own.shape[1]:
            raise InputError(
                f"Prompted.encoder: a layer of {self.owner.identity.source!r} reads {tuple(hidden.shape)}, not a "
                f"sequence (B T {own.shape[1]}); its layers take no prompts"
            )
        count, more = hidden.shape[1], len(own)
        longer = torch.cat([hidden, own.to(hidden.dtype).expand(len(hidden), -1, -1)], dim=1)

        def widened(value: Any) -> Any:
            """Attention masks and biases (B 1 N T): the vectors are attended to; what they attend to is dropped."""
            if isinstance(value, Tensor) and value.dim() == 4 and value.shape[3] == count:
                rows = more if value.shape[2] == count else 0
                return pad(value, (0, more, 0, rows), value=bool(1) if value.dtype == torch.bool else 0.0)
            return value

        if args:
            args = (longer, *map(widened, args[1:]))
        else:
            kwargs = {**kwargs, "hidden_states": longer}
        return args, {name: widened(value) for name, value in kwargs.items()}


class _Strip:
    """Hook behind a layer: drops what it made of its vectors."""

    def __init__(self, owner: Prompted) -> None:
        self.owner = owner

    def __call__(self, layer: nn.Module, args: Any, output: Any) -> Any:
        more = self.owner.prompts.shape[1]
        if isinstance(output, tuple):
            first, *rest = cast("tuple[Tensor, ...]", output)
            return first[:, :-more], *rest
        return output[:, :-more]
