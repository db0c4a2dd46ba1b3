"""Several edges on Ray: ``serve run splitpoint.serving.ray_app:app edges=2 num_gpus=1`` (the extra ``ray``).

Each edge is a deployment of its own with one replica, so that the door, the application's ingress, can pick one; Ray
says on which machine and GPU it runs and starts it again if it dies. Everything else is the edge that ``splitpoint
edge`` starts: engine, batch, protocol.
"""

import math
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from splitpoint.serving.door import Door, EdgeBehind
from splitpoint.serving.edge_command import check_policy, read_table, read_tokens
from splitpoint.serving.engine import EngineOptions, ProcessEngine
from splitpoint.serving.journal import Journal
from splitpoint.serving.protocol import Tokens
from splitpoint.serving.service import ServiceOptions

LONG_POLLS = 10_000  # requests that may be open at a replica; each waiting device holds one
WINDOWED = ("window_plan", "window_plan_counting")
OBJECT_STORE = 80 * 2**20  # bytes; answers are kilobytes and travel in messages


class RayOptions(BaseModel):
    """What ``serve run`` may be told, as ``name=value``.

    Args:
        edges: one deployment each.
        policy: of all edges together, as of ``splitpoint edge``.
        users: names, with commas between; each gets a token, printed at the start.
        tokens: a JSON file {"name": "token"} instead.
        num_gpus, num_cpus: of Ray's, that an edge asks for; with a GPU its ``device`` is "cuda".
        model, num_steps, max_batch, guidance_scale, scheduler, device, dtype, threads: see ``EngineOptions``.
        transfer_s, max_waiting, keep_s, expected_hz: see ``ServiceOptions``.
        table: CSV of batch,step_s of every edge, instead of timing its steps.
        journals: folder that each edge's machine can write to; an edge that dies then goes on.

    Raises:
        ValueError: naming what is wrong, before anything is started.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    edges: int = Field(default=2, ge=1, le=1_000)
    policy: str = ServiceOptions.policy
    users: str = "me"
    tokens: Path | None = None
    num_gpus: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    num_cpus: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    model: str = "mini"
    num_steps: int = 50
    max_batch: int = 18
    guidance_scale: float | None = None
    scheduler: str = "ddim"
    device: str | None = None
    dtype: str = "float32"
    threads: int = 1
    transfer_s: float = ServiceOptions.transfer_s
    max_waiting: int = ServiceOptions.max_waiting
    keep_s: float = ServiceOptions.keep_s
    expected_hz: float = ServiceOptions.expected_hz
    table: Path | None = None
    journals: Path | None = None

    def engine(self) -> EngineOptions:
        """Of each edge."""
        device = self.device or ("cuda" if self.num_gpus else "cpu")
        return EngineOptions(self.model, self.num_steps, self.max_batch, self.guidance_scale, self.scheduler, device,
                             self.dtype, self.threads)  # fmt: skip

    def service(self) -> ServiceOptions:
        """Of each edge; a policy of its own is never asked."""
        table = None if self.table is None else read_table(self.table)
        return ServiceOptions("all_local", self.transfer_s, max_waiting=self.max_waiting, keep_s=self.keep_s,
                              expected_hz=self.expected_hz, table=table)  # fmt: skip


class RayEdge(EdgeBehind):
    """An edge in a replica."""

    async def __init__(  # type: ignore[misc]
        self,
        number: int,
        engine: EngineOptions,
        options: ServiceOptions,
        tokens: Tokens,
        viewer: str,
        journals: Path | None,
    ):
        journal = None if journals is None else Journal(journals / f"edge-{number}.journal")
        super().__init__(number, ProcessEngine(engine), options, tokens, viewer, journal)
        await self.start()

    def check_health(self) -> None:
        """Asked by Ray, which starts a new replica if this raises."""
        self.service.check_health()

    async def __del__(self):
        await self.stop()


class RayDoor(Door):
    """The ingress; ``edges`` are handles of deployments."""

    async def __init__(self, edges: list, tokens: Tokens, policy: str, expected_hz: float):  # type: ignore[misc]
        super().__init__([_Handle(edge) for edge in edges], tokens, policy, expected_hz)
        await self.start()

    def __serve_build_asgi_app__(self) -> Any:
        return self.app()


class _Handle:
    """``Behind``, over Ray."""

    def __init__(self, handle: Any):
        self.handle = handle

    async def machine(self) -> dict:
        return await self.handle.machine.remote()

    async def look(self, user, key):
        return await self.handle.look.remote(user, key)

    async def answer(self, method, path, query, headers, body, steps=None):
        return await self.handle.answer.remote(method, path, query, headers, body, steps)


def app(options: RayOptions) -> Any:
    """The application that ``serve run`` and a Serve config start; prints address-less tokens.

    Raises:
        ValueError: naming what is wrong, before anything is started.
    """
    application, given, viewer = _application(options)
    print(f"token of what only looks: {viewer}")
    for name, token in given.items():
        print(f"device     splitpoint device --edge ADDRESS --token {token}   # {name}")
    return application


def _application(options: RayOptions) -> tuple[Any, dict[str, str], str]:
    """The application, the users' tokens and the viewer's."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray import serve  # pyright: ignore[reportMissingImports]

    engine, service = options.engine(), options.service()  # what is wrong is refused here, not in a replica
    check_policy(options.policy)
    if options.policy in WINDOWED:
        raise ValueError(
            f"policy={options.policy!r} plans windows, and for one edge; valid is one that answers at once"
        )
    tokens, viewer = Tokens({}), secrets.token_urlsafe(12)
    given = {name: tokens.add(name, token) for name, token in read_tokens(options.users, options.tokens).items()}
    common = dict(num_replicas=1, max_ongoing_requests=LONG_POLLS, logging_config={"enable_access_log": False})
    resources = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    edges = [
        serve.deployment(RayEdge)
        .options(name=f"edge-{number}", ray_actor_options=resources, **common)
        .bind(number, engine, service, tokens, viewer, options.journals)
        for number in range(options.edges)
    ]
    door = serve.deployment(serve.ingress()(RayDoor)).options(name="door", ray_actor_options={"num_cpus": 0}, **common)
    return door.bind(edges, tokens, options.policy, options.expected_hz), given, viewer


@dataclass(frozen=True)
class RunningEdges:
    """Edges on a Ray of their own, on this machine.

    Args:
        url: where the door listens.
        tokens: of each user.
        viewer: token that may look.
    """

    url: str
    tokens: Mapping[str, str]
    viewer: str


@contextmanager
def ray_alone(num_cpus: int = 2) -> Iterator[str]:
    """A Ray of this process alone, on the loopback: no dashboard, no reports, ended with everything in it.

    Args:
        num_cpus: that it may give away; a number for its bookkeeping, not a limit.

    Returns:
        Address at which Serve will listen.

    Raises:
        ValueError: if this process is part of a Ray already.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray's own ports; read once in a process
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # its 5 s are too few for a first import
    import ray  # pyright: ignore[reportMissingImports]
    from ray import serve  # pyright: ignore[reportMissingImports]

    if ray.is_initialized():
        raise ValueError("ray is running in this process already; valid is one that has none")
    with tempfile.TemporaryDirectory(prefix="edges-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        try:
            ray.init(
                "local",
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                log_to_driver=False,
                _temp_dir=folder,
                _node_ip_address="127.0.0.1",
            )
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield f"http://127.0.0.1:{port}"
        finally:
            if ray.is_initialized():
                serve.shutdown()
            ray.shutdown()


@contextmanager
def running_on_ray(options: RayOptions) -> Iterator[RunningEdges]:
    """Edges and their door on a Ray of this process alone, until the context ends.

    Raises:
        ValueError: naming what is wrong, before anything is started.
    """
    application, given, viewer = _application(options)
    from ray import serve  # pyright: ignore[reportMissingImports]

    with ray_alone(math.ceil(options.edges * options.num_cpus)) as url:
        serve.run(application, name="splitpoint", route_prefix="/")
        yield RunningEdges(url, given, viewer)
