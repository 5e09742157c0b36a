"""The embedded default: a tiny world of pictures and sounds made in code, and frozen models that were raised in it.

``make`` writes data sets, ``draw`` and ``render`` show one scene, ``captions`` lists all that is true of it,
``held_out`` tells whether it is new to every mapper that was trained here. The models lie in ``frozen`` and are made
by ``recipes/pretrain_world.py``.
"""

from mmprefix.world.language import captions as captions
from mmprefix.world.language import parse as parse
from mmprefix.world.making import make as make
from mmprefix.world.making import make_samples as make_samples
from mmprefix.world.pictures import draw as draw
from mmprefix.world.scenes import Event as Event
from mmprefix.world.scenes import Picture as Picture
from mmprefix.world.scenes import Sound as Sound
from mmprefix.world.scenes import Thing as Thing
from mmprefix.world.scenes import held_out as held_out
from mmprefix.world.scenes import sample as sample
from mmprefix.world.sounds import render as render

__all__ = [
    "Event",
    "Picture",
    "Sound",
    "Thing",
    "captions",
    "draw",
    "held_out",
    "make",
    "make_samples",
    "parse",
    "render",
    "sample",
]
