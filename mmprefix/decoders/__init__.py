"""Language models, frozen or tuned, that read a prefix and generate text."""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.decoders.causal import CausalDecoder as CausalDecoder
    from mmprefix.decoders.cross_attention import CrossDecoder as CrossDecoder
    from mmprefix.decoders.word_level import WordDecoder as WordDecoder

__all__ = ["CausalDecoder", "CrossDecoder", "WordDecoder"]
__getattr__ = lazy_exports(
    __name__, {"CausalDecoder": "causal", "CrossDecoder": "cross_attention", "WordDecoder": "word_level"}
)
