"""The part that computes: a batch in a process of its own, one message a step.

The process that answers the network decides who is in the batch; this one encodes prompts, takes steps and hands over.
Text and packets are made in a thread beside the steps. It ends with the process that started it.
"""

import asyncio
import multiprocessing
import traceback
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter
from typing import Any, Protocol

from splitpoint.checks import finite_number, one_of, whole_number
from splitpoint.serving.protocol import as_png

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class EngineOptions:
    """What an engine loads and how it computes.

    Args:
        model: "mini", or the folder of a pipeline that ``families`` knows.
        num_steps: denoising steps N of a run.
        max_batch: most rows of a step.
        guidance_scale: classifier-free guidance; the miniature's own, or 7.5, if left out.
        scheduler: as of ``HybridPipeline``.
        device: of torch.
        dtype: of the weights.
        threads: of torch in this process.
        same_shape: pad every step to ``max_batch`` rows, so that company changes no bit of a picture.
    """

    model: str = "mini"
    num_steps: int = 50
    max_batch: int = 18
    guidance_scale: float | None = None
    scheduler: str = "ddim"
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    same_shape: bool = False

    def __post_init__(self):
        whole_number("num_steps", self.num_steps, 1)
        whole_number("max_batch", self.max_batch, 1)
        whole_number("threads", self.threads, 1)
        one_of("dtype", self.dtype, DTYPES)
        if self.guidance_scale is not None:
            finite_number("guidance_scale", self.guidance_scale, 0.0)


@dataclass(frozen=True)
class Job:
    """A picture as the engine sees it.

    Args:
        prompt, seed: what to draw, from which noise.
        steps: here.
        decode: make the picture here, too; then ``steps`` are all.
    """

    prompt: str
    seed: int
    steps: int
    decode: bool = False


@dataclass(frozen=True)
class Stepped:
    """What one step did: its seconds, and the error of each row that failed."""

    seconds: float
    failed: Mapping[Any, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HandOver:
    """A row that is done here.

    Args:
        id: of the request.
        content: the packet's bytes, or a PNG if the job asked for the picture.
        encode_s: seconds of text and noise, before the first step.
        serialise_s: of making ``content``.
        error: in one line, if it came to nothing.
    """

    id: Any
    content: bytes
    encode_s: float = 0.0
    serialise_s: float = 0.0
    error: str = ""


class Engine(Protocol):
    """What the server needs of one; a test has its own with a clock that it sets."""

    facts: dict

    async def start(self, on_hand_over: Callable[[HandOver], None], on_death: Callable[[], None]) -> None:
        """Load; ``facts`` are known afterwards."""
        ...

    def prepare(self, request_id: Any, job: Job) -> None:
        """Begin with the text."""
        ...

    async def step(self, joining: list, leaving: list) -> Stepped:
        """Let in and throw out, then one step of all."""
        ...

    def forget(self, request_id: Any) -> None:
        """Drop one that has not joined."""
        ...

    async def stop(self) -> None:
        """End it."""
        ...


class EngineDied(RuntimeError):
    """The process that computes is gone."""


class ProcessEngine:
    """An engine in a process of its own.

    Args:
        options: what it loads.
    """

    def __init__(self, options: EngineOptions):
        self.options, self.facts = options, {}
        self._process: Any = None

    async def start(self, on_hand_over: Callable[[HandOver], None], on_death: Callable[[], None]) -> None:
        """Start the process and wait until it has loaded.

        Raises:
            ValueError: if it cannot load, saying why.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self.options), daemon=True, name="engine")
        self._process.start()
        theirs.close()
        self._on_hand_over, self._on_death = on_hand_over, on_death
        self._loop = asyncio.get_running_loop()
        self._reply = self._loop.create_future()
        self._loop.add_reader(self._pipe.fileno(), self._read)
        kind, value = await self._reply
        if kind != "ready":
            await self.stop()
            raise ValueError(f"model={self.options.model!r} cannot be loaded: {value}")
        self.facts = value

    @property
    def pid(self) -> int | None:
        """Of the process; None before it starts."""
        return self._process.pid if self._process is not None else None

    def _read(self) -> None:
        try:
            while self._pipe.poll():
                message = self._pipe.recv()
                if isinstance(message, HandOver):
                    self._on_hand_over(message)
                elif not self._reply.done():
                    self._reply.set_result(message)
        except (EOFError, OSError):
            self._loop.remove_reader(self._pipe.fileno())
            if not self._reply.done():
                self._reply.set_exception(EngineDied("the engine's process ended"))
                self._reply.exception()  # seen, also if nobody waits for a step
            self._on_death()

    def _send(self, message: tuple) -> None:
        try:
            self._pipe.send(message)
        except OSError as error:
            raise EngineDied("the engine's process ended") from error

    def prepare(self, request_id: Any, job: Job) -> None:
        """See ``Engine``."""
        self._send(("prepare", request_id, job))

    def forget(self, request_id: Any) -> None:
        """See ``Engine``."""
        self._send(("forget", request_id))

    async def step(self, joining: list, leaving: list) -> Stepped:
        """See ``Engine``."""
        self._reply = self._loop.create_future()
        self._send(("step", joining, leaving))
        return await self._reply

    async def stop(self) -> None:
        """Close the pipe; the process ends by itself, or is ended."""
        if self._process is None:
            return
        self._on_death = lambda: None
        try:
            self._loop.remove_reader(self._pipe.fileno())
        except (OSError, ValueError):
            pass
        self._pipe.close()
        await asyncio.to_thread(self._process.join, 5)
        if self._process.is_alive():
            self._process.kill()
            await asyncio.to_thread(self._process.join)
        self._process = None


def keep_prompts_out_of_the_log() -> None:
    """No remark about unknown words in this process: a device makes it to whoever typed them."""
    warnings.filterwarnings("ignore", message="the miniature does not know")


def load_family(options: EngineOptions):
    """The edge's network as ``families`` sees it, and its guidance.

    Raises:
        ValueError: for a folder that holds no pipeline of a known family.
    """
    import torch

    from splitpoint.diffusion.families import family_of
    from splitpoint.diffusion.mini import GUIDANCE_SCALE, load_mini
    from splitpoint.diffusion.users import load_pipeline

    dtype = getattr(torch, options.dtype)
    if options.model == "mini":
        pipeline, guidance = load_mini(device=options.device, dtype=dtype), GUIDANCE_SCALE
    else:
        pipeline, guidance = load_pipeline(options.model, dtype, options.device), 7.5
    return family_of(pipeline), guidance if options.guidance_scale is None else options.guidance_scale


class Worker:
    """The engine without its process: rows by id.

    Args:
        options: see ``EngineOptions``.
        send: takes each ``HandOver``; called from another thread.
    """

    def __init__(self, options: EngineOptions, send: Callable[[HandOver], None]):
        from splitpoint.diffusion.batch import StepBatch

        self.options, self.send = options, send
        self.family, self.guidance_scale = load_family(options)
        one_of("scheduler", options.scheduler, self.family.samplers)
        self.batch = StepBatch(self.family, options.max_batch if options.same_shape else None)
        self.beside = ThreadPoolExecutor(1, "beside-the-steps")
        self.prepared: dict[Any, Future] = {}
        self.rows: dict[Any, Any] = {}
        self.jobs: dict[Any, Job] = {}
        self.encode_s: dict[Any, float] = {}

    def facts(self) -> dict:
        """What a server and devices need to know."""
        options = self.options
        return dict(
            fingerprint=self.family.fingerprint,
            model=options.model.rstrip("/\\").replace("\\", "/").split("/")[-1],
            num_steps=options.num_steps,
            max_batch=options.max_batch,
            guidance_scale=self.guidance_scale,
            scheduler=options.scheduler,
            device=options.device,
        )

    def prepare(self, request_id: Any, job: Job) -> None:
        """Text and noise, beside the steps."""
        self.jobs[request_id] = job
        self.prepared[request_id] = self.beside.submit(self._prepare, job)

    def _prepare(self, job: Job):
        from splitpoint.diffusion.batch import Request

        began, options = perf_counter(), self.options
        split = options.num_steps - job.steps
        run = (job.prompt, job.seed, options.num_steps, split, self.guidance_scale, options.scheduler)
        return self.batch.prepare(Request(*run)), perf_counter() - began

    def forget(self, request_id: Any) -> None:
        """A request that nobody wants any more."""
        self.prepared.pop(request_id, None)
        self.jobs.pop(request_id, None)
        self.encode_s.pop(request_id, None)
        row = self.rows.pop(request_id, None)
        if row is not None:
            self.batch.release(row)

    def step(self, joining: list, leaving: list) -> Stepped:
        """Let in and throw out, then one step of all; who has done its steps is handed over beside the next step."""
        failed: dict[Any, str] = {}
        for request_id in leaving:
            self.forget(request_id)
        for request_id in joining:
            try:
                row, encode_s = self.prepared.pop(request_id).result()
                self.batch.admit(row)
                self.rows[request_id], self.encode_s[request_id] = row, encode_s
            except Exception as error:
                failed[request_id] = _one_line(error)
                self.forget(request_id)
        began = perf_counter()
        tick = self.batch.step()
        seconds = perf_counter() - began
        names = {row: name for name, row in self.rows.items()}
        for row in tick.left:
            name = names[row]
            self.rows.pop(name)
            job, encode_s = self.jobs.pop(name), self.encode_s.pop(name)
            if row.error is not None:
                failed[name] = _one_line(row.error)
            else:
                self.beside.submit(self._hand_over, name, row, job, encode_s)
        return Stepped(seconds, failed)

    def _hand_over(self, name: Any, row: Any, job: Job, encode_s: float) -> None:
        began = perf_counter()
        try:
            content = self._png(row) if job.decode else self.batch.finish(row).to_bytes()
            self.send(HandOver(name, content, encode_s, perf_counter() - began))
        except Exception as error:
            self.send(HandOver(name, b"", error=_one_line(error)))

    def _png(self, row: Any) -> bytes:
        from splitpoint.diffusion.hybrid import to_images

        return as_png(to_images(self.family.decode(row.latent[None]))[0])


def _one_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _work(pipe: Any, options: EngineOptions) -> None:
    """The process: messages in, messages out, until the other end is gone."""
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server ends this one
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(options.threads)
    keep_prompts_out_of_the_log()
    lock = Lock()

    def send(message: object) -> None:
        with lock:
            pipe.send(message)

    try:
        worker = Worker(options, send)
    except Exception as error:
        send(("failed", _one_line(error)))
        return
    send(("ready", worker.facts()))
    try:
        while True:
            kind, *rest = pipe.recv()
            if kind == "step":
                send(worker.step(*rest))
            elif kind == "prepare":
                worker.prepare(*rest)
            else:
                worker.forget(*rest)
    except (EOFError, OSError):
        return
    except Exception:
        traceback.print_exc()
    finally:
        worker.beside.shutdown(wait=False, cancel_futures=True)
