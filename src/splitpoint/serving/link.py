"""A link that misbehaves on purpose: a proxy between devices and an edge, with toxiproxy's vocabulary.

Bytes wait as long as a link of that rate and delay would make them wait; a connection may be reset, cut short or
stalled after so many bytes. It runs in user space, so it needs no rights.
"""

import asyncio
import threading
from dataclasses import dataclass
from random import Random

from splitpoint.checks import finite_number, instance_of, whole_number

CHUNK = 4_096


@dataclass
class Toxics:
    """What is wrong with the link; may be changed while it runs, for connections to come.

    Args:
        rate_bps: bits a second each way; None is as fast as it gets.
        delay_s: one way.
        jitter_s: up to so much more, uniform, without overtaking.
        reset_after: bytes down, then the connection is reset.
        truncate_after: bytes down, then it is closed as if all were well.
        stall_after: bytes down, then nothing more comes.
        seed: of the jitter.
    """

    rate_bps: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    reset_after: int | None = None
    truncate_after: int | None = None
    stall_after: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.rate_bps is not None:
            finite_number("rate_bps", self.rate_bps, 0.0, open_end=True)
        for name in ("delay_s", "jitter_s"):
            finite_number(name, getattr(self, name), 0.0)
        for name in ("reset_after", "truncate_after", "stall_after"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 0)


class LinkProxy:
    """Listens on a free port of this machine and passes everything on.

    Use as ``with LinkProxy(host, port, toxics) as link: … link.url``; it runs in a thread of its own.

    Args:
        host, port: of the edge.
        toxics: see ``Toxics``.
    """

    def __init__(self, host: str, port: int, toxics: Toxics | None = None):
        whole_number("port", port, 1, 65_535)
        self.host, self.port = host, port
        self.toxics = Toxics() if toxics is None else toxics
        instance_of("toxics", self.toxics, Toxics)
        self.connections, self.bytes_down = 0, 0
        self._random = Random(self.toxics.seed)

    def __enter__(self) -> "LinkProxy":
        started = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def serve() -> None:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
            self._end = asyncio.Event()
            started.set()
            await self._end.wait()
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(serve()), daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *error) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            up_reader, up_writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            writer.transport.abort()
            return
        both = (self._pass_on(reader, up_writer, False), self._pass_on(up_reader, writer, True))
        try:
            await asyncio.gather(*both)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            for side in (writer, up_writer):
                side.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, down: bool) -> None:
        queue: asyncio.Queue = asyncio.Queue(64)
        sending = asyncio.ensure_future(self._send(queue, writer, down))
        loop, free_at, last_at = asyncio.get_running_loop(), 0.0, 0.0
        try:
            while chunk := await reader.read(CHUNK):
                toxics, now = self.toxics, loop.time()
                free_at = max(free_at, now) + (8 * len(chunk) / toxics.rate_bps if toxics.rate_bps else 0.0)
                jitter = self._random.uniform(0.0, toxics.jitter_s) if toxics.jitter_s else 0.0
                last_at = max(last_at, free_at + toxics.delay_s + jitter)
                await queue.put((last_at, chunk))
            await queue.put((last_at, None))
            await sending
        finally:
            sending.cancel()

    async def _send(self, queue: asyncio.Queue, writer: asyncio.StreamWriter, down: bool) -> None:
        loop, sent, toxics = asyncio.get_running_loop(), 0, self.toxics
        ends = {name: getattr(toxics, name) for name in ("reset_after", "truncate_after", "stall_after")}
        first = min((after for after in ends.values() if after is not None), default=None) if down else None
        while True:
            at, chunk = await queue.get()
            await asyncio.sleep(max(0.0, at - loop.time()))
            if chunk is None:
                writer.close()
                return
            part = chunk if first is None else chunk[: max(0, first - sent)]
            writer.write(part)
            await writer.drain()
            sent += len(part)
            self.bytes_down += len(part) if down else 0
            if first is not None and sent >= first:
                if ends["stall_after"] == first:
                    await asyncio.Event().wait()
                if ends["truncate_after"] == first:
                    writer.close()
                raise ConnectionResetError("the link was cut")
