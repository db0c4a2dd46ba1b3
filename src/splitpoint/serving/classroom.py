"""A class around one edge: people join with a code, and every browser is a device.

A page draws its last steps itself; for one whose browser cannot, this machine does.
"""

import asyncio
import hmac
import secrets
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from splitpoint.serving.engine import EngineOptions

_LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"  # none that look alike


class Classroom:
    """Who may join, and what their browsers need to be devices.

    The last steps of those whose browser cannot compute them are computed here, by a process of its own, one after the
    other, each at the pace that the student's browser measured.

    Args:
        options: of the engine, for the same model and guidance.
        tries: wrong codes before joining is closed for good.
    """

    def __init__(self, options: EngineOptions, tries: int = 500):
        if options.model != "mini":
            raise ValueError(f"model={options.model!r} of a classroom is 'mini', whose personal models are at hand")
        self.options, self.tries = options, tries
        self.code = "".join(secrets.choice(_LETTERS) for _ in range(6))
        self.browsers: Any = None  # ``home.ForBrowsers``, once it has started
        self._service: Any = None
        self._pool: ProcessPoolExecutor | None = None

    async def start(self, service: Any) -> None:
        """Load the personal models, and export them for browsers if that was not done before."""
        self._service = service
        from splitpoint.serving.home import for_browsers, open_home

        self._pool = await open_home()
        self.browsers = await self._at_home(for_browsers, self.options.num_steps)

    async def _at_home(self, function: Callable, *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *given)

    async def stop(self) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def may_join(self, code: str) -> bool:
        """Whether this is the code; closed after too many wrong ones."""
        right = hmac.compare_digest(code.strip().upper().encode(), self.code.encode())
        self.tries -= not right
        return right and self.tries > 0

    def facts(self) -> dict:
        """What the student's page offers."""
        from splitpoint.diffusion.users import mini_users

        told = dict(styles=list(mini_users()), concepts=_concepts(), num_steps=self.options.num_steps)
        return told | dict(browser=self.browsers.facts or None)

    def said(self) -> str:
        """Who draws the last steps, in one line."""
        if self.browsers.why_not:
            return f"this machine draws for them: {self.browsers.why_not}"
        if self.browsers.facts["runtime"]["origin"]:
            return "draw by themselves if they have internet; `splitpoint browser-files` makes that needless"
        return "draw by themselves"

    async def tokens(self, ticket: Any) -> list[list[int]]:
        """Token numbers of a request's prompt and of no prompt, (2, tokens)."""
        from splitpoint.serving.home import tokens_of

        return await self._at_home(tokens_of, ticket.ask.prompt)

    async def whole_packet(self, ticket: Any) -> bytes:
        """The packet of a request that runs on the device alone: no step done, the noise on board.

        Raises:
            Refused: 409 for one of which the edge does a part, 410 for one that is over.
        """
        from splitpoint.serving.home import whole_packet
        from splitpoint.serving.service import Refused

        if ticket.state != "home":
            raise Refused(409 if ticket.state == "granted" else 410, f"this request is {ticket.state}")
        return await self._at_home(whole_packet, ticket.ask.prompt, ticket.ask.seed, self._service.engine.facts)

    async def draw(self, ticket: Any, style: str) -> bytes:
        """The rest of a request in a style, and the picture as PNG; acknowledged with what it took.

        Raises:
            Refused: for a style that is not there, or a request that is over.
        """
        from splitpoint.diffusion.users import mini_users
        from splitpoint.serving.home import draw_at_home
        from splitpoint.serving.protocol import Timings
        from splitpoint.serving.service import Refused

        if style not in mini_users():
            raise Refused(422, "style is not one of this class")
        service = self._service
        content = None
        if ticket.state != "home":
            while content is None:
                content = await service.content(ticket, 20.0)
        received = service.now()
        job = ticket.ask.prompt, ticket.ask.seed, service.engine.facts, content, style
        picture, decode_s = await self._at_home(draw_at_home, *job)
        left = self.options.num_steps - ticket.steps
        pace_s = left * ticket.ask.device_step_s - (service.now() - received - decode_s)
        await asyncio.sleep(max(0.0, pace_s))
        now = service.now()
        device_s = max(0.0, now - received - decode_s)
        timings = Timings(
            transfer_s=0.0, device_s=device_s, decode_s=decode_s, total_s=max(1e-6, now - ticket.accepted_s)
        )
        if ticket.state in ("granted", "home"):
            service.show_picture(ticket, picture)
            service.acknowledge(ticket, timings)
        return picture


def _concepts() -> list[str]:
    import json

    from splitpoint.files import data_path

    return sorted(json.loads(data_path("models", "mini", "concepts.json").read_text())["concepts"])
