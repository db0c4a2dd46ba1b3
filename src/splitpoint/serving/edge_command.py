"""``splitpoint edge``: start an edge, say where it is, drain it on SIGTERM."""

import argparse
import asyncio
import json
import os
import secrets
import signal
import socket
import sys
import threading
from pathlib import Path

import pandas as pd
import uvicorn

from splitpoint.files import write_atomically
from splitpoint.offloading import TableLatency
from splitpoint.serving.app import create_app
from splitpoint.serving.classroom import Classroom
from splitpoint.serving.engine import DTYPES, EngineOptions, ProcessEngine
from splitpoint.serving.journal import Journal
from splitpoint.serving.protocol import Tokens
from splitpoint.serving.service import Service, ServiceOptions

#: hosts that stand for all addresses: their family, one far away (reserved for examples; nothing is sent there), and
#: this machine's own where there is no network
EVERYWHERE = {
    "0.0.0.0": (socket.AF_INET, "192.0.2.1", "127.0.0.1"),
    "::": (socket.AF_INET6, "2001:db8::1", "::1"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="splitpoint edge",
        description="Serve the first denoising steps of many users' pictures.",
        epilog="example: splitpoint edge --users ann,ben --policy 'posted_price' --journal results/edge.journal",
    )
    add = parser.add_argument
    add("--policy", default="posted_price", help="a name (default %(default)s), or a learned curve, .safetensors")
    add("--host", default="127.0.0.1", help="address to listen on; only this machine unless told otherwise")
    add("--port", type=int, default=8765, help="default %(default)d; 0 takes any that is free")
    add("--users", default="me", help="names, with commas between; each gets a token (default %(default)s)")
    add("--tokens", type=Path, help='a JSON file {"name": "token"} instead of --users')
    add("--journal", type=Path, help="file to go on from after a restart")
    add("--to-disk", action="store_true", help="wait for the disk at every accepted request")
    add("--ready", type=Path, help="write address and tokens to this file once requests are answered")
    add("--model", default="mini", help="'mini', or the folder of a diffusers pipeline")
    add("--num-steps", type=int, default=50, help="denoising steps of a run (default %(default)d)")
    add("--max-batch", type=int, default=18, help="most rows of a step (default %(default)d)")
    add("--guidance", type=float, help="guidance scale; the model's own if left out")
    add("--scheduler", default="ddim", help="ddim (the default), euler or dpmsolver++")
    add("--device", default="cpu", help="of torch: cpu, cuda, mps")
    add("--dtype", default="float32", choices=DTYPES, help="of the weights")
    add("--threads", type=int, default=1, help="of the process that computes")
    add("--same-shape", action="store_true", help="pad every step, so that company changes no bit of a picture")
    add("--table", type=Path, help="CSV of batch,step_s from an earlier start, instead of timing steps at this one")
    add("--transfer", type=float, default=0.005, help="seconds of a hand-over, for decisions and forecasts")
    add("--expected-hz", type=float, default=4.0, help="requests a second to expect (default %(default)g)")
    add("--max-waiting", type=int, default=64, help="requests that may wait; more are turned away")
    add("--keep", type=float, default=600.0, help="seconds that a packet waits for its device")
    add("--drain", type=float, default=30.0, help="seconds to finish after SIGTERM")
    add("--with-parent", action="store_true", help="end when standard input is closed, for whoever started it")
    add("--classroom", action="store_true", help="let people join with a code, and draw for them")
    return parser


def main() -> None:
    """The command.

    Raises:
        ValueError: naming what cannot be served, before anything is started.
    """
    options = _parser().parse_args()
    if sys.platform == "win32":
        raise ValueError("the running edge needs Linux, macOS, or Windows' Linux subsystem")
    engine = EngineOptions(
        options.model,
        options.num_steps,
        options.max_batch,
        options.guidance,
        options.scheduler,
        options.device,
        options.dtype,
        options.threads,
        options.same_shape,
    )
    service = ServiceOptions(
        policy=options.policy,
        transfer_s=options.transfer,
        max_waiting=options.max_waiting,
        keep_s=options.keep,
        expected_hz=options.expected_hz,
        table=None if options.table is None else read_table(options.table),
    )
    check_policy(options.policy)
    given = read_tokens(options.users, options.tokens)
    tokens = Tokens({})
    given = {name: tokens.add(name, token) for name, token in given.items()}
    asyncio.run(_serve(options, engine, service, tokens, given))


def check_policy(name: str) -> None:
    """Refuse what is neither a policy's name nor the file of one.

    Raises:
        ValueError: naming those that there are.
    """
    from splitpoint.checks import one_of
    from splitpoint.edge import load_curve, policies

    if name.endswith(".safetensors"):
        load_curve(name)
    else:
        one_of("policy", name, policies())


def read_table(path: Path) -> TableLatency:
    """Seconds of a step from a CSV of ``batch,step_s``.

    Raises:
        ValueError: for a file that holds none.
    """
    try:
        table = pd.read_csv(path)
        return TableLatency(tuple(table["batch"]), tuple(table["step_s"]))
    except (OSError, KeyError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"table={path.name!r} must hold columns batch and step_s: {error}") from None


def read_tokens(users: str, file: Path | None) -> dict[str, str | None]:
    """Who may ask, and the token of each if it is given.

    Args:
        users: names, with commas between.
        file: JSON {"name": "token"} instead.

    Raises:
        ValueError: for a file that holds no such thing.
    """
    if file is None:
        return {name.strip(): None for name in users.split(",") if name.strip()}
    try:
        given = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"tokens={file.name!r} cannot be read: {error}") from None
    if not isinstance(given, dict) or not all(isinstance(token, str) for token in given.values()):
        raise ValueError(f'tokens={file.name!r} must hold {{"name": "token"}}')
    return given


def own_address(host: str) -> str:
    """The address that others open: of one that stands for all of them, this machine's own on its network.

    Args:
        host: address to listen on.
    """
    if host not in EVERYWHERE:
        return host
    family, far, alone = EVERYWHERE[host]
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect((far, 9))
            return asking.getsockname()[0]
    except OSError:  # no network
        return alone


async def _serve(options, engine_options, service_options, tokens: Tokens, given: dict[str, str]) -> None:
    journal = Journal(options.journal, options.to_disk) if options.journal else None
    viewer = secrets.token_urlsafe(12)
    service = Service(ProcessEngine(engine_options), service_options, journal)
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # with its protocol named, asyncio sends small answers at once (TCP_NODELAY); without, each waits 40 ms for an ACK
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host, options.port))
    except OSError as error:
        raise ValueError(f"port={options.port} of {options.host} cannot be opened: {error.strerror}") from None
    host = own_address(options.host)
    url = f"http://{host if family == socket.AF_INET else f'[{host}]'}:{listening.getsockname()[1]}"
    classroom = Classroom(engine_options) if options.classroom else None
    app = create_app(service, tokens, viewer, classroom)
    print("loading, and timing steps" if options.table is None else "loading", "…", flush=True)
    try:
        await service.start()
        if classroom is not None:
            await classroom.start(service)
        await _answer(options, app, service, listening, url, viewer, given, classroom)
    finally:
        if classroom is not None:
            await classroom.stop()
        await service.stop()


async def _answer(options, app, service: Service, listening: socket.socket, url, viewer, given, classroom) -> None:
    """Answer requests until a signal."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=3,
        limit_concurrency=2_000,
    )
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    _on_sigterm(server, service, options.drain)
    if options.with_parent:
        _end_with_parent()
    print(f"edge       {url}   policy {options.policy!r}, batch up to {options.max_batch}")
    print(f"live page  {url}/#token={viewer}")
    for name, token in given.items():
        print(f"device     splitpoint device --edge {url} --token {token}   # {name}")
    if classroom is not None:
        print(f"students   {url}/student   join code {classroom.code}")
        print(f"browsers   {classroom.said()}")
    sys.stdout.flush()
    if options.ready is not None:
        facts = dict(url=url, viewer=viewer, tokens=given, engine=service.engine.facts)
        facts["code"] = classroom.code if classroom else None
        write_atomically(options.ready, json.dumps(facts).encode())
    await serving


def _end_with_parent() -> None:
    """Drain once standard input is closed, which the system does also for a parent that was killed."""

    def wait() -> None:
        while os.read(0, 1):  # not by sys.stdin, whose lock a thread that waits would hold at the end
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _on_sigterm(server: uvicorn.Server, service: Service, longest_s: float) -> None:
    """Finish who is here, then go; a second signal goes at once."""
    loop = asyncio.get_running_loop()

    async def leave() -> None:
        await service.drain(longest_s)
        server.should_exit = True

    def asked() -> None:
        if service.draining:
            server.should_exit = True
        else:
            service.draining = True
            service.leaving = loop.create_task(leave())

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
