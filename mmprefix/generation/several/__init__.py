"""One text with several prefixes: their next-token distributions are joined before a search picks its tokens."""

from mmprefix.generation.several.air_decoding import AirDecoding
from mmprefix.generation.several.guidance import Guidance
from mmprefix.generation.several.join import Join, Mixture, Product
from mmprefix.generation.several.strongest import Strongest

__all__ = ["AirDecoding", "Guidance", "Join", "Mixture", "Product", "Strongest"]
