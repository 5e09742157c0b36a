"""Load of `mmprefix serve` on the loopback interface: many clients, good and bad requests, batched against unbatched.

    python -m benchmarks.serve_load [--model DIRECTORY] [--seconds 60] [--warm-up 2] [--clients 64] [--out FILE]

A server runs in a process of its own, once as it is by default and once with ``--max-batch 1``. Clients are coroutines
of this process that keep their connections: each sends one request after the other, of which one in ten is bad (a file
that is none, an unknown option, JSON that is none, a path that is none). Every good answer is compared with what the
model writes for that input alone; requests carry ids, which answers must bear. Memory is the server's resident set.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import soundfile

import mmprefix
from mmprefix import world
from mmprefix.world.audio import RATE
from mmprefix.world.scenes import Medium

BAD_SHARE = 0.1
WAYS: dict[str, list[str]] = {"batched": [], "unbatched": ["--max-batch", "1", "--max-wait-ms", "0"]}


@dataclass(frozen=True)
class LoadRequest:
    """A request without its id: status and text that its answer has."""

    path: str
    kind: str
    body: bytes
    status: int
    text: str | None = None

    def bytes_with(self, name: str) -> bytes:
        """The request as HTTP/1.1, with the id ``name``."""
        head = f"POST {self.path} HTTP/1.1\r\nHost: load\r\nX-Request-ID: {name}\r\nContent-Type: {self.kind}\r\n"
        return f"{head}Content-Length: {len(self.body)}\r\n\r\n".encode() + self.body


@dataclass
class Tally:
    """Counts of one run, and the seconds of every good answer."""

    seconds: list[float] = field(default_factory=list[float])
    elapsed: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter[int])
    mismatches: int = 0
    broken: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def row(self) -> dict[str, Any]:
        """Figures of a run: times in milliseconds, memory in MB."""
        order = sorted(self.seconds)
        places = {share: min(len(order) - 1, len(order) * share // 100) for share in (50, 95, 99)}
        marks = {f"p{share}_ms": round(1000 * order[place]) for share, place in places.items()}
        sizes = [size for _, size in self.memory]
        return {
            "good_per_second": round(len(order) / self.elapsed, 2),
            **marks,
            "statuses": dict(sorted(self.statuses.items())),
            "mismatches": self.mismatches,
            "broken_connections": self.broken,
            "rss_mb": {
                f"{share}%": round(sizes[(len(sizes) - 1) * share // 100]) for share in (0, 10, 25, 50, 75, 100)
            },
        }


def form_data(content: bytes) -> tuple[str, bytes]:
    """Content type and body of one file as form-data."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="../../a"\r\n\r\n'
    return "multipart/form-data; boundary=b", head + content + b"\r\n--b--\r\n"


def questions(
    model: str | None, medium: Literal["image", "audio", "both"], count: int = 24
) -> tuple[list[LoadRequest], list[LoadRequest]]:
    """Good requests with their right answers, and bad ones."""
    predictor = mmprefix.load(model, device="cpu") if model else mmprefix.load(device="cpu")
    files: list[bytes] = []
    media: tuple[Medium, ...] = ("image", "audio") if medium == "both" else (medium,)
    for kind in media:
        for scene in islice(world.sample(kind, 11, new=True), count // len(media)):
            stream = io.BytesIO()
            if isinstance(scene, world.Picture):
                world.draw(scene).save(stream, "PNG")
            elif isinstance(scene, world.Sound):
                soundfile.write(stream, world.render(scene), RATE, format="WAV")
            files.append(stream.getvalue())
    good = [LoadRequest("/v1/caption", *form_data(file), 200, predictor(file)) for file in files]
    bad = [
        LoadRequest("/v1/caption", *form_data(b"this is no file"), 400),
        LoadRequest("/v1/caption", *form_data(files[0][:100]), 400),
        LoadRequest("/v1/caption", "application/json", b'{"inputs": ["aaaa"], "no_such": 1}', 422),
        LoadRequest("/v1/caption", "application/json", b"{", 422),
        LoadRequest("/v1/caption", "text/plain", b"hello", 415),
        LoadRequest("/v1/none", "application/json", b"{}", 404),
        LoadRequest("/v1/chat/completions", "application/json", b'{"model": "none", "messages": []}', 422),
    ]
    return good, bad


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, str, bytes]:
    """Status, id and body of the answer to ``request``."""
    writer.write(request)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
    return int(head.split(" ", 2)[1]), fields["x-request-id"], await reader.readexactly(int(fields["content-length"]))


async def client(number: int, port: int, end: float, asked: tuple[list[LoadRequest], list[LoadRequest], Tally]) -> None:
    """One request after the other until ``end``; a connection that breaks is counted and opened anew."""
    good, bad, tally = asked
    draw, turn = random.Random(number), 0
    while time.monotonic() < end:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while time.monotonic() < end:
                question = draw.choice(bad if draw.random() < BAD_SHARE else good)
                name, turn = f"{number}.{turn}", turn + 1
                begun = time.monotonic()
                status, own, body = await asyncio.wait_for(ask(reader, writer, question.bytes_with(name)), 120)
                note(tally, question, (status, own == name, body), time.monotonic() - begun)
            writer.close()
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            tally.broken += 1


def note(tally: Tally, question: LoadRequest, answer: tuple[int, bool, bytes], seconds: float) -> None:
    """Count one answer."""
    status, same, body = answer
    tally.statuses[status] += 1
    text = json.loads(body)["results"][0]["texts"][0]["text"] if status == 200 else None
    if not same or status not in (question.status, 429) or (status == 200 and text != question.text):
        tally.mismatches += 1
    elif status == 200:
        tally.seconds.append(seconds)


async def watch(process: int, end: float, tally: Tally) -> None:
    """Note the resident set of ``process`` once a second, in MB."""
    while time.monotonic() < end:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        tally.memory.append((time.monotonic(), pages * os.sysconf("SC_PAGE_SIZE") / 1e6))
        await asyncio.sleep(1)


async def load(port: int, process: int, plan: argparse.Namespace, asked: Any) -> Tally:
    """Tally of all clients; the seconds of load before it warm the server up and are not counted."""
    for seconds, tally in ((plan.warm_up, Tally()), (plan.seconds, Tally())):
        begun = time.monotonic()
        end = begun + seconds
        clients = [client(number, port, end, (*asked, tally)) for number in range(plan.clients)]
        await asyncio.gather(watch(process, end, tally), *clients)
        tally.elapsed = time.monotonic() - begun  # the answers to the last requests included
    return tally


def serve(plan: argparse.Namespace, words: Sequence[str]) -> tuple[subprocess.Popen[str], int]:
    """A server that is ready, and its port."""
    models = [] if plan.model is None else [plan.model]
    command = [sys.executable, "-m", "mmprefix", "serve", *models, "--port", "0", "--device", "cpu", *words]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if '"serving"' in line:
            return server, int(json.loads(line)["address"].rpartition(":")[2])
    raise SystemExit("the server did not start")


def measure(plan: argparse.Namespace, words: Sequence[str], asked: Any) -> dict[str, Any]:
    """Figures of a server with the options ``words``."""
    server, port = serve(plan, words)
    assert server.stderr is not None
    drained = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)  # a full pipe would hold it up
    try:
        row = asyncio.run(load(port, server.pid, plan, asked)).row()
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(120)
        drained.wait(10)
    return {**row, "exit_code": code}


def main(words: Sequence[str] | None = None) -> int:
    """Print a table and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", help="saved model (default: the embedded world's)")
    parser.add_argument("--medium", choices=["image", "audio", "both"], default="both")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds of load before, which are not counted")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--only", choices=list(WAYS), help="one way alone, without the ratio")
    parser.add_argument("--out", type=Path)
    plan = parser.parse_args(words)
    asked = questions(plan.model, plan.medium)
    ways = [plan.only] if plan.only else list(WAYS)
    rows = {name: measure(plan, WAYS[name], asked) for name in ways}
    print(f"{'':10} good/s  p50 ms  p95 ms  p99 ms  wrong  broken  RSS MB at 0, 10, 25, 50, 75, 100 %  statuses")
    for name, row in rows.items():
        print(
            f"{name:10} {row['good_per_second']:6}  {row['p50_ms']:6}  {row['p95_ms']:6}  {row['p99_ms']:6}  "
            f"{row['mismatches']:5}  {row['broken_connections']:6}  {'  '.join(map(str, row['rss_mb'].values()))}  "
            f"{row['statuses']}"
        )
    figures: dict[str, Any] = {"clients": plan.clients, "seconds": plan.seconds, "warm_up": plan.warm_up, **rows}
    if not plan.only:
        figures["ratio"] = rows["batched"]["good_per_second"] / max(rows["unbatched"]["good_per_second"], 1e-9)
        print(f"batched / unbatched: {figures['ratio']:.1f}")
    if plan.out:
        plan.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if all(not row["mismatches"] and not row["broken_connections"] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
