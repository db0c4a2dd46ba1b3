"""The edge on the network: what each address answers. Computation is elsewhere; nothing here blocks."""

import asyncio
import base64
import hashlib
import hmac
import io
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from PIL import Image

from splitpoint.serving.protocol import (
    KEY,
    MAX_BODY,
    MAX_PICTURE,
    Ask,
    Images,
    Join,
    Timings,
    Tokens,
    read_body,
)
from splitpoint.serving.service import Refused, Service, Ticket, retry_after

LONGEST_POLL_S = 25.0
PAGES = {
    "": ("live.html", "text/html"),
    "student": ("student.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "live.js": ("live.js", "text/javascript"),
    "student.js": ("student.js", "text/javascript"),
    "profile.js": ("profile.js", "text/javascript"),
    "packet.js": ("packet.js", "text/javascript"),
    "sampler.js": ("sampler.js", "text/javascript"),
    "device_worker.js": ("device_worker.js", "text/javascript"),
}
COMPUTING = ("student", "device_worker.js")  # a worker has the policy that it came with
_SAFE = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_KEEP = {"Cache-Control": "public, max-age=31536000, immutable"}  # of files whose address changes with their content


class BodyLimit:
    """Refuses a body above its limit while it comes in, before anything reads it."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        """Of ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, seen = (MAX_PICTURE if scope["path"].endswith("/picture") else MAX_BODY), 0
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > limit:
            await _error(413, f"body is longer than {limit} bytes")(scope, receive, send)
            return

        async def counted() -> dict:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise Refused(413, f"body is longer than {limit} bytes")
            return message

        await self.app(scope, counted, send)


def create_app(service: Service, tokens: Tokens, viewer: str, classroom: "Any | None" = None) -> FastAPI:
    """The application of one edge, which is started and stopped by whoever serves it.

    Args:
        service: the edge.
        tokens: who may ask.
        viewer: token of the live page and of what only looks.
        classroom: rules of joining, or None.
    """

    app = bare_app()
    app.state.service = service

    def user_of(request: Request) -> str:
        user = tokens.user(request.headers.get("authorization"))
        if user is None:
            raise Refused(401, "a valid bearer token is needed")
        return user

    def viewer_of(request: Request) -> None:
        given = request.query_params.get("token", "")
        asked = hmac.compare_digest(given.encode(), viewer.encode())
        if not asked and tokens.user(request.headers.get("authorization")) is None:
            raise Refused(401, "a valid token is needed")

    _pages(app, classroom)
    _requests(app, service, user_of)
    _views(app, service, viewer_of)
    if classroom is not None:
        _classroom(app, service, user_of, tokens, classroom)
    return app


def bare_app() -> FastAPI:
    """An application without an address: bodies have a limit, every error is one line."""
    app = FastAPI(title="splitpoint edge", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return _error(error.status, error.text, retry_after(error.retry_after_s))

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def unknown(request: Request, error: Exception) -> Response:
        return _error(getattr(error, "status_code", 404), "there is nothing at this address")

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return _error(500, "the edge made a mistake")

    return app


async def _read(request: Request, kind: type):
    content = await request.body()
    try:
        return read_body(kind, content), hashlib.sha256(content).hexdigest()
    except ValueError as error:
        raise Refused(422, str(error)) from None


def _requests(app: FastAPI, service: Service, user_of) -> None:
    """What devices do."""

    def own(request: Request, name: str) -> Ticket:
        return service.ticket(user_of(request), name)

    @app.post("/v1/requests")
    async def ask(request: Request) -> Response:
        user = user_of(request)
        key = request.headers.get("idempotency-key")
        if key is not None and not KEY.fullmatch(key):
            raise Refused(422, "Idempotency-Key must be 1 to 80 letters, digits, '_', '.', ':' or '-'")
        body, digest = await _read(request, Ask)
        # no client can write into the scope: a door before several edges does, with what it decided for this one
        ticket = await service.ask(user, body, key, digest, kept=request.scope.get("decided_steps"))
        return JSONResponse(_answer(service, ticket), 202)

    @app.get("/v1/requests/{name}")
    async def state(request: Request, name: str) -> Response:
        ticket = own(request, name)
        return JSONResponse(_answer(service, ticket) | {"state": ticket.state})

    @app.get("/v1/requests/{name}/packet")
    async def packet(request: Request, name: str) -> Response:
        ticket = own(request, name)
        try:
            wait_s = min(max(0.0, float(request.query_params.get("wait", "20"))), LONGEST_POLL_S)
        except ValueError:
            raise Refused(422, "wait must be a number of seconds") from None
        asked_s = service.now()
        waiting = service.content(ticket, wait_s if wait_s == wait_s else 0.0)
        if request.query_params.get("hold") == "1":
            waiting = _while_connected(request, waiting, lambda: service.cancel(ticket))
        content = await waiting
        if content is None:
            return JSONResponse({"state": ticket.state}, 202, retry_after(1.0))
        held_s = max(0.0, asked_s - (ticket.ready_s or asked_s))
        spans = ticket.spans() | {"held_s": held_s}
        headers = {"X-Spans": json.dumps({name: round(value, 6) for name, value in spans.items()})}
        return Response(content, 200, headers, "application/octet-stream")

    @app.delete("/v1/requests/{name}")
    async def cancel(request: Request, name: str) -> Response:
        ticket = own(request, name)
        service.cancel(ticket)
        return JSONResponse({"state": ticket.state})

    @app.post("/v1/requests/{name}/ack")
    async def acknowledge(request: Request, name: str) -> Response:
        ticket = own(request, name)
        timings, _ = await _read(request, Timings)
        service.acknowledge(ticket, timings)
        return JSONResponse({"state": ticket.state})

    @app.post("/v1/requests/{name}/picture")
    async def picture(request: Request, name: str) -> Response:
        ticket = own(request, name)
        service.show_picture(ticket, _checked_png(await request.body()))
        return JSONResponse({"state": ticket.state})

    @app.post("/v1/images/generations")
    async def images(request: Request) -> Response:
        user = user_of(request)
        body, digest = await _read(request, Images)
        ask = Ask(prompt=body.prompt, seed=body.seed, device_step_s=1.0)
        ticket = await service.ask(user, ask, None, digest, decode=True)
        try:
            content = await service.content(ticket, 600.0)
            if content is None:
                raise Refused(503, "the picture is not ready", 10.0)
            total_s = max(1e-6, service.now() - ticket.accepted_s)
            service.acknowledge(ticket, Timings(transfer_s=0.0, device_s=0.0, decode_s=0.0, total_s=total_s))
        except asyncio.CancelledError:
            service.cancel(ticket)
            raise
        return JSONResponse({"created": 0, "data": [{"b64_json": base64.b64encode(content).decode()}]})


async def _while_connected(request: Request, waiting: Coroutine, leave: Callable[[], None]):
    """What is waited for; if the connection closes first, ``leave`` is called: a closed tab frees its place."""

    async def closed() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(waiting), asyncio.ensure_future(closed())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            leave()
        return await tasks[0]
    finally:
        for task in tasks:
            task.cancel()


def _answer(service: Service, ticket: Ticket) -> dict:
    """What a device needs to know of its request."""
    steps, facts = service.engine.facts["num_steps"], service.engine.facts
    return dict(
        id=ticket.id,
        granted=bool(ticket.steps),
        steps=ticket.steps,
        split_point=steps - ticket.steps,
        num_steps=steps,
        guidance_scale=facts["guidance_scale"],
        scheduler=facts["scheduler"],
        fingerprint=facts["fingerprint"],
        price_s=ticket.price_s,
        predicted=ticket.predicted,
    )


def _views(app: FastAPI, service: Service, viewer_of) -> None:
    """What only looks."""

    @app.get("/healthz")
    async def health() -> Response:
        return JSONResponse({"ok": not service.draining, "ticks": service.ticks}, 503 if service.draining else 200)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        viewer_of(request)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/log")
    async def log(request: Request) -> Response:
        viewer_of(request)
        return JSONResponse(dict(log=service.log(), table_s=service.system.table_s[0, 1:].tolist()))

    @app.get("/v1/finished")
    async def finished(request: Request) -> Response:
        viewer_of(request)
        return JSONResponse(list(service.finished))

    @app.get("/pictures/{name}.png")
    async def picture(request: Request, name: str) -> Response:
        viewer_of(request)
        if name not in service.pictures:
            raise Refused(404, "there is no such picture")
        return Response(service.pictures[name][2], media_type="image/png", headers=_SAFE)

    @app.get("/events")
    async def events(request: Request) -> Response:
        viewer_of(request)
        return StreamingResponse(
            _stream(service), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )


async def _stream(service: Service) -> AsyncIterator[bytes]:
    queue: asyncio.Queue = asyncio.Queue(4)
    queue.put_nowait(service.view())
    service.listeners.add(queue)
    try:
        while True:
            try:
                view = await asyncio.wait_for(queue.get(), 10.0)
                yield b"data: " + json.dumps(view).encode() + b"\n\n"
            except TimeoutError:
                yield b": still here\n\n"
    finally:
        service.listeners.discard(queue)


def _pages(app: FastAPI, classroom: Any) -> None:
    folder = resources.files("splitpoint.serving") / "web"
    for address, (name, kind) in PAGES.items():
        headers = (lambda: _computing(classroom)) if address in COMPUTING else (lambda: _SAFE)
        app.add_api_route(f"/{address}", _page((folder / name).read_bytes(), kind, headers), methods=["GET"])


def _page(content: bytes, kind: str, headers: Callable[[], dict[str, str]]):
    async def page() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=headers())

    return page


def _computing(classroom: Any) -> dict[str, str]:
    """Headers of what may compile WebAssembly; from elsewhere only where this edge has no runtime of its own."""
    script, connect = "'self' 'wasm-unsafe-eval'", "'self'"
    if classroom is not None and (origin := classroom.browsers.facts.get("runtime", {}).get("origin")):
        script, connect = f"{script} blob:", f"{connect} {origin}"
    policy = f"{_SAFE['Content-Security-Policy']}; script-src {script}; connect-src {connect}"
    return _SAFE | {"Content-Security-Policy": policy}


def _classroom(app: FastAPI, service: Service, user_of, tokens: Tokens, classroom: Any) -> None:
    """How a student joins, what a browser needs to be a device, and who draws for one whose browser is none."""

    def own(request: Request, name: str) -> Ticket:
        return service.ticket(user_of(request), name)

    @app.get("/v1/classroom")
    async def facts() -> Response:
        return JSONResponse(classroom.facts())

    @app.post("/v1/join")
    async def join(request: Request) -> Response:
        body, _ = await _read(request, Join)
        if not classroom.may_join(body.code):
            raise Refused(403, "this is not the join code")
        try:
            return JSONResponse({"name": body.name, "token": tokens.add(body.name)})
        except ValueError as error:
            raise Refused(422, str(error)) from None

    @app.get("/browser/{name}")
    async def file(request: Request, name: str) -> Response:
        found = classroom.browsers.files.get(name)
        if found is None:
            raise Refused(404, "there is no such file")
        path, headers = found.path, _SAFE | _KEEP
        if found.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            path, headers = found.packed, headers | {"Content-Encoding": "gzip"}
        return FileResponse(path, headers=headers, media_type=found.kind)

    @app.get("/v1/tables/{sampler}")
    async def table(sampler: str) -> Response:
        if sampler not in classroom.browsers.tables:
            raise Refused(404, "there is no table of such a sampler")
        return JSONResponse(classroom.browsers.tables[sampler])

    @app.get("/v1/requests/{name}/tokens")
    async def tokens_of(request: Request, name: str) -> Response:
        return JSONResponse(await classroom.tokens(own(request, name)))

    @app.get("/v1/requests/{name}/whole")
    async def whole(request: Request, name: str) -> Response:
        return Response(await classroom.whole_packet(own(request, name)), media_type="application/octet-stream")

    @app.post("/v1/requests/{name}/draw")
    async def draw(request: Request, name: str) -> Response:
        ticket = own(request, name)
        content = await classroom.draw(ticket, request.query_params.get("style", ""))
        return Response(content, media_type="image/png", headers=_SAFE)


def _checked_png(content: bytes) -> bytes:
    """A small PNG that can be read."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if max(picture.size) > 1_024:
                raise Refused(422, "picture is wider or higher than 1024 pixels")
            picture.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise Refused(422, "body is not a PNG picture") from None
    return content


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text}, status, headers)
