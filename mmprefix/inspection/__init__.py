"""Look inside a prefix: the nearest words of each position, its norm, and where in the input it looks.

Every view computes prefixes as a caption does, through ``mmprefix.inference.batches``, and leaves the model as it was.
docs/inside_a_prefix.md says what each view means, and what it does not.
"""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.inspection.caption_words import caption_map as caption_map
    from mmprefix.inspection.drawing import heat_picture as heat_picture
    from mmprefix.inspection.drawing import heat_spectrogram as heat_spectrogram
    from mmprefix.inspection.interpolation import interpolate as interpolate
    from mmprefix.inspection.looking import attention_maps as attention_maps
    from mmprefix.inspection.maps import Maps as Maps
    from mmprefix.inspection.side_report import BesidePositions as BesidePositions
    from mmprefix.inspection.side_report import beside_positions as beside_positions
    from mmprefix.inspection.word_norms import Norms as Norms
    from mmprefix.inspection.word_norms import norms as norms
    from mmprefix.inspection.words import NextWord as NextWord
    from mmprefix.inspection.words import Word as Word
    from mmprefix.inspection.words import has_embeddings as has_embeddings
    from mmprefix.inspection.words import nearest_words as nearest_words
    from mmprefix.inspection.words import next_words as next_words

_FILES = {
    "Maps": "maps",
    "attention_maps": "looking",
    "caption_map": "caption_words",
    "heat_picture": "drawing",
    "heat_spectrogram": "drawing",
    "interpolate": "interpolation",
    **dict.fromkeys(("BesidePositions", "beside_positions"), "side_report"),
    **dict.fromkeys(("Norms", "norms"), "word_norms"),
    **dict.fromkeys(("NextWord", "Word", "has_embeddings", "nearest_words", "next_words"), "words"),
}
__all__ = [
    "BesidePositions",
    "Maps",
    "NextWord",
    "Norms",
    "Word",
    "attention_maps",
    "beside_positions",
    "caption_map",
    "has_embeddings",
    "heat_picture",
    "heat_spectrogram",
    "interpolate",
    "nearest_words",
    "next_words",
    "norms",
]
__getattr__ = lazy_exports(__name__, _FILES)
