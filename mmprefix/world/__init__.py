"""Embedded example: synthetic pictures and sounds of a tiny world, and frozen models trained on them.

``make`` writes data sets, ``draw`` and ``render`` show one scene, ``captions`` lists every caption of it, ``held_out``
is true of scenes that no mapper is trained on. ``ClipData`` makes clips: shapes that move, with an instruction and the
plan that carries it out. The models are in ``frozen``; ``recipes/pretrain/world.py`` makes them.
``trained`` is the quick start's model, which ``mmprefix.load()`` and ``mmprefix demo`` use where none is named; its
README says how it was made.
"""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.world.audio import render as render
    from mmprefix.world.clip_data import ClipData as ClipData
    from mmprefix.world.clip_data import make_clips as make_clips
    from mmprefix.world.clips import MovingScene as MovingScene
    from mmprefix.world.clips import draw_frames as draw_frames
    from mmprefix.world.clips import sample_clips as sample_clips
    from mmprefix.world.data import WorldData as WorldData
    from mmprefix.world.generate import make as make
    from mmprefix.world.generate import make_samples as make_samples
    from mmprefix.world.grammar import captions as captions
    from mmprefix.world.grammar import parse as parse
    from mmprefix.world.images import draw as draw
    from mmprefix.world.manners import MannersData as MannersData
    from mmprefix.world.scenes import Event as Event
    from mmprefix.world.scenes import Picture as Picture
    from mmprefix.world.scenes import Sound as Sound
    from mmprefix.world.scenes import Thing as Thing
    from mmprefix.world.scenes import held_out as held_out
    from mmprefix.world.scenes import sample as sample

_FILES = {
    "MovingScene": "clips",
    "ClipData": "clip_data",
    "MannersData": "manners",
    "WorldData": "data",
    "captions": "grammar",
    "draw": "images",
    "draw_frames": "clips",
    "make": "generate",
    "make_clips": "clip_data",
    "make_samples": "generate",
    "parse": "grammar",
    "render": "audio",
    "sample_clips": "clips",
    **dict.fromkeys(("Event", "Picture", "Sound", "Thing", "held_out", "sample"), "scenes"),
}
__all__ = [
    "ClipData",
    "Event",
    "MannersData",
    "MovingScene",
    "Picture",
    "Sound",
    "Thing",
    "WorldData",
    "captions",
    "draw",
    "draw_frames",
    "held_out",
    "make",
    "make_clips",
    "make_samples",
    "parse",
    "render",
    "sample",
    "sample_clips",
]
__getattr__ = lazy_exports(__name__, _FILES)
