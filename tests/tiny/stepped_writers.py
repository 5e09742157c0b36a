"""Writers of a feature store, each in a process of its own that runs line by line, at the test's command."""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import torch

from mmprefix.features import claims
from mmprefix.features.claims import claiming, remove_dead_claims
from mmprefix.features.filling import EncodedBatch, EncodeRequest, PendingBatches, ShardWriter, is_full, plan
from mmprefix.features.keys import feature_key
from mmprefix.features.store import FeatureStore
from mmprefix.interrupt import Stopped, stop_signals
from mmprefix.types import FeatureRow

WIDTHS = {"encoder": "some.Encoder", "dtype": "float16", "widths": [2, 1]}
PACKAGE = Path(claims.__file__).parents[1]
TRACED = {str(file) for file in [*(PACKAGE / "features").glob("*.py"), PACKAGE / "atomic.py"]}


@dataclass(frozen=True)
class Work:
    """Inputs of a writer, by number, how it makes batches and shards of them, and the machine that it runs on."""

    inputs: tuple[int, ...]
    batch_size: int = 2
    shard_batches: int = 2
    machine: str | None = None
    lease: float = claims.LEASE


def row(number: int) -> FeatureRow:
    """Features of input ``number``."""
    return FeatureRow(torch.full((number % 3, 2), float(number)).half(), torch.tensor([float(number)]).half())


def fill(root: Path, work: Work, on_stop: Callable[[], object]) -> None:
    """Fill the store below ``root`` as ``fill_store`` does, with features that cost nothing."""
    numbers = {feature_key(str(number)): number for number in work.inputs}
    requests = [EncodeRequest(key, str(number), 0.0, None, float(number)) for key, number in numbers.items()]
    store = FeatureStore(root, WIDTHS)
    store.remove_damaged()
    batches = plan(requests, work.batch_size)
    if is_full(store, batches):
        remove_dead_claims(store.folder)
        return
    with claiming(store.folder) as own:
        pending = PendingBatches(store, batches, own, {})
        writer = ShardWriter(store, own)
        try:
            while pending.wait():
                for count, batch in enumerate(pending, start=1):
                    keys = [request.key for request in batch.inputs]
                    writer.keep(EncodedBatch(batch.name, keys, [row(numbers[key]) for key in keys]))
                    if count % work.shard_batches == 0:
                        writer.publish()
                writer.publish()
        except Stopped:
            on_stop()
            writer.publish()
            raise


class SteppedWriter:
    """Writer that does as many lines of the package as it is told to, and can be killed between any two."""

    _open: ClassVar[set[int]] = set()  # ends of pipes of this process, which no writer may keep open

    def __init__(self, root: Path, work: Work) -> None:
        (self._theirs_in, self._commands), (self._reports, self._theirs_out) = os.pipe(), os.pipe()
        self._open.update((self._commands, self._reports))
        self.code: int | None = None
        self.process = os.fork()
        if not self.process:
            os._exit(self._run(root, work))
        os.close(self._theirs_in)
        os.close(self._theirs_out)
        assert os.read(self._reports, 1)  # it is at its first line

    def step(self, lines: int) -> None:
        """Let the writer do so many lines, or fewer where it waits for the others or ends."""
        with suppress(BrokenPipeError):  # it has ended of a signal
            os.write(self._commands, struct.pack("i", lines))
        if not os.read(self._reports, 1):
            self._end()

    def kill(self) -> None:
        """Kill the process as ``kill -9`` does, where it is."""
        os.kill(self.process, signal.SIGKILL)
        self._end()

    def stop(self) -> None:
        """Send SIGTERM, which the writer takes with its next line."""
        os.kill(self.process, signal.SIGTERM)

    def _end(self) -> None:
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        for end in (self._commands, self._reports):
            self._open.remove(end)
            os.close(end)

    # ----------------------------------------------------------------------------------------- in the writer's process

    def _run(self, root: Path, work: Work) -> int:
        try:
            for end in self._open:
                os.close(end)
            if work.machine is not None:
                claims.machine = lambda: str(work.machine)
            claims.LEASE = work.lease
            self._left, time.sleep = 1, lambda _: self._pause()
            with stop_signals():
                trace = partial(sys.settrace, self._trace)  # Python drops a trace that a signal was raised in
                trace()
                fill(root, work, trace)
                sys.settrace(None)
        except Stopped as stop:
            return stop.exit_code
        except BaseException:
            sys.settrace(None)
            traceback.print_exc()
            return 1
        return 0

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            self._left -= 1
            if self._left <= 0:
                self._pause()
        return self._trace

    def _pause(self) -> None:
        os.write(self._theirs_out, b".")
        (self._left,) = struct.unpack("i", os.read(self._theirs_in, 4))
