"""A class around one edge: people join with a code, and this machine draws for those who have nothing installed."""

import asyncio
import hmac
import secrets
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from splitpoint.serving.engine import EngineOptions

_LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"  # none that look alike


class Classroom:
    """Who may join, and the devices of students who have only a browser.

    Their last steps are computed here, by a process of its own, one after the other, each at the pace that the
    student's browser measured.

    Args:
        options: of the engine, for the same model and guidance.
        tries: wrong codes before joining is closed for good.
    """

    def __init__(self, options: EngineOptions, tries: int = 500):
        if options.model != "mini":
            raise ValueError(f"model={options.model!r} of a classroom is 'mini', whose personal models are at hand")
        self.options, self.tries = options, tries
        self.code = "".join(secrets.choice(_LETTERS) for _ in range(6))
        self._service: Any = None
        self._pool: ProcessPoolExecutor | None = None
        self._busy = asyncio.Semaphore(4)

    async def start(self, service: Any) -> None:
        """Load the personal models."""
        self._service = service
        from splitpoint.serving.home import open_home

        self._pool = await open_home()

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

        return dict(styles=list(mini_users()), concepts=_concepts(), num_steps=self.options.num_steps)

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
        service, loop = self._service, asyncio.get_running_loop()
        content = None
        if ticket.state != "home":
            while content is None:
                content = await service.content(ticket, 20.0)
        received = service.now()
        job = ticket.ask.prompt, ticket.ask.seed, service.engine.facts, content, style
        picture, decode_s = await loop.run_in_executor(self._pool, draw_at_home, *job)
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
