"""Encoders that keep what they encoded take the options of those that they stand for."""

from __future__ import annotations

import inspect

import pytest

from benchmarks.lib.cached_encoders import CachedCnn, CachedWhisper
from mmprefix.encoders.cnn import Cnn
from mmprefix.encoders.whisper import Whisper


@pytest.mark.parametrize(("cached", "plain"), [(CachedCnn, Cnn), (CachedWhisper, Whisper)])
def test_a_cached_encoder_takes_every_option_of_its_own(cached: type, plain: type) -> None:
    options, own = (inspect.signature(kind.__init__).parameters.values() for kind in (cached, plain))
    assert [(p.name, p.kind, p.default) for p in options] == [(p.name, p.kind, p.default) for p in own]
