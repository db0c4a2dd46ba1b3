"""A user's device: asks the edge, takes the packet over, runs the last steps on the personal model.

Whatever happens to the edge, the picture comes: from the packet, from the packet saved before a restart, or from the
seed, all steps at home.
"""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from PIL import Image

from splitpoint.checks import a_path, finite_number, instance_of, whole_number
from splitpoint.diffusion.batch import Request, StepBatch
from splitpoint.diffusion.families import family_of
from splitpoint.diffusion.hybrid import to_images
from splitpoint.diffusion.packet import Packet
from splitpoint.diffusion.users import User
from splitpoint.files import safe_name, write_atomically
from splitpoint.serving.protocol import as_png, check_address

RETRY_S = (0.05, 0.1, 0.2, 0.4, 0.8)  # between two tries, then the last


@dataclass(frozen=True, eq=False)
class Drawn:
    """A picture that arrived.

    Args:
        image: 8 bit a channel.
        where: "edge" if both drew it, "home" if the edge said no, "alone" if the edge could not be reached.
        steps: that the edge did.
        seconds: durations by part, ``total_s`` among them.
        predicted: what the edge said when it accepted, seconds.
        spans: durations on the edge.
        late_steps: of the device's, that took longer than its pace.
    """

    image: Image.Image
    where: str
    steps: int
    seconds: Mapping[str, float]
    predicted: Mapping[str, float] = field(default_factory=dict)
    spans: Mapping[str, float] = field(default_factory=dict)
    late_steps: int = 0


def finish(user: User, start: Request | Packet, pace_s: float | None = None) -> tuple[Image.Image, float, int]:
    """The steps that are left, on the personal model, and the picture.

    Args:
        user: personal model.
        start: packet of an edge, or a request to draw whole.
        pace_s: seconds of a step, kept by waiting; as fast as it can if left out.

    Returns:
        The picture, the moment (``time.perf_counter``) at which the last step was done, and how many steps were late by
        more than a twentieth of the pace.
    """
    family = family_of(user.pipeline)
    batch, late, count = StepBatch(family), 0, 0
    with user.model():
        row = batch.prepare(start)
        if row.remaining:
            batch.admit(row)
        began = time.perf_counter()
        while row.remaining:
            tick = batch.step()
            if row.error is not None:
                raise row.error
            count += len(tick.rows)
            if pace_s is not None:
                ahead = began + count * pace_s - time.perf_counter()
                late += ahead < -0.05 * pace_s
                time.sleep(max(0.0, ahead))
        stepped = time.perf_counter()
        image = to_images(family.decode(row.latent[None]))[0]  # type: ignore[index]
    return image, stepped, late


class Device:
    """One user's device.

    Args:
        url: of the edge.
        token: of the user.
        user: personal model, as from ``load_mini_hybrid().users``.
        pace_s: seconds of a step of the device that is played; real computation, then waiting. As fast as it can, if
            left out; then ``step_s`` must say what the device takes.
        step_s: told to the edge as seconds of a step; ``pace_s`` if left out.
        patience_s: how long to try before the picture is drawn alone.
        folder: where packets are kept until the picture is there; none keeps nothing.
        num_steps, guidance_scale, scheduler: of a run without the edge.

    Raises:
        ValueError: naming the argument, its value and the valid range.
    """

    def __init__(
        self,
        url: str,
        token: str,
        user: User,
        *,
        pace_s: float | None = None,
        step_s: float | None = None,
        patience_s: float = 30.0,
        folder: str | Path | None = None,
        num_steps: int = 50,
        guidance_scale: float = 3.0,
        scheduler: str = "ddim",
    ):
        check_address("url", url)
        instance_of("user", user, User)
        step_s = pace_s if step_s is None else step_s
        finite_number("step_s", step_s, 0.0, open_end=True)  # type: ignore[arg-type]
        finite_number("patience_s", patience_s, 0.0)
        whole_number("num_steps", num_steps, 1)
        if pace_s is not None:
            finite_number("pace_s", pace_s, 0.0, open_end=True)
        if folder is not None:
            a_path("folder", folder)
            Path(folder).mkdir(parents=True, exist_ok=True)
        self.user, self.pace_s, self.step_s, self.patience_s = user, pace_s, step_s, patience_s
        self.folder = None if folder is None else Path(folder)
        self.run = dict(num_steps=num_steps, guidance_scale=guidance_scale, scheduler=scheduler)
        headers = {"Authorization": f"Bearer {token}"}
        self.client = httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(40.0, connect=2.0))

    def reaches(self) -> bool:
        """Whether anybody answers at the edge's address now."""
        try:
            return self.client.get("/healthz", timeout=2.0).status_code < 500
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def draw(
        self, prompt: str, seed: int = 0, alpha: float = 0.0, deadline_s: float | None = None, key: str | None = None
    ) -> Drawn:
        """Ask for a picture and wait for it.

        Args:
            prompt, seed: what, and from which noise.
            alpha: seconds worth one unit of accuracy.
            deadline_s: the edge's help is refused if it would miss this and the device alone would not.
            key: makes asking twice asking once; a new one if left out.

        Raises:
            ValueError: if the edge refuses the request itself (not its time), in its words.
        """
        began = time.perf_counter()
        key = secrets.token_hex(8) if key is None else key
        body = dict(prompt=prompt, seed=seed, device_step_s=self.step_s, alpha=alpha, deadline_s=deadline_s)
        answer = self._ask(body, key)
        asked = time.perf_counter()
        if answer is None or not answer["granted"]:
            row = self._row(prompt, seed, answer or {})
            return self._finish(row, "alone" if answer is None else "home", began, asked, answer or {}, {})
        found = self._packet(answer, prompt, seed)
        if found is None:
            return self._finish(self._row(prompt, seed, answer), "alone", began, asked, {}, {})
        packet, spans = found
        self._keep(answer, packet)
        return self._finish(packet, "edge", began, asked, answer, spans)

    def resume(self) -> list[Drawn]:
        """Finish what a stopped device had taken over, from the saved packets.

        Raises:
            ValueError: for a saved packet that is damaged.
        """
        drawn = []
        for file in sorted(self.folder.glob("*.packet")) if self.folder else []:
            packet = Packet.from_bytes(file.read_bytes())
            answer = json.loads(file.with_suffix(".json").read_text())
            began = time.perf_counter()
            drawn.append(self._finish(packet, "edge", began, began, answer, {}))
        return drawn

    # --- the edge ---

    def _ask(self, body: dict, key: str) -> dict | None:
        response = self._send("POST", "/v1/requests", json=body, headers={"Idempotency-Key": key})
        if response is None:
            return None
        if response.status_code != 202:
            raise ValueError(f"the edge refuses: {_words(response)}")
        answer = response.json()
        safe_name("id", answer["id"])
        return answer

    def _packet(self, answer: dict, prompt: str, seed: int) -> tuple[Packet, dict] | None:
        """The packet and the edge's spans; None if the edge cannot give it."""
        for _ in range(1_000):
            response = self._send("GET", f"/v1/requests/{answer['id']}/packet", params={"wait": 20})
            if response is None or response.status_code not in (200, 202):
                return None
            if response.status_code == 202:
                continue
            try:
                packet = Packet.from_bytes(response.content)
            except ValueError:
                continue  # damaged on the way: it can be fetched again
            if (packet.prompt, packet.seed) != (prompt, seed):
                raise ValueError("the edge sent the packet of another request")
            return packet, json.loads(response.headers.get("x-spans", "{}"))
        return None

    def _send(self, method: str, path: str, **options) -> httpx.Response | None:
        """An answer that is no "come again"; None if there was none for ``patience_s``."""
        until, tries = time.monotonic() + self.patience_s, 0
        while True:
            wait_s = RETRY_S[min(tries, len(RETRY_S) - 1)]
            try:
                response = self.client.request(method, path, **options)
                if response.status_code not in (429, 502, 503, 504):
                    return response
                wait_s = min(float(response.headers.get("retry-after", wait_s)), 5.0)
            except (httpx.TransportError, httpx.DecodingError):
                pass
            tries += 1
            if time.monotonic() + wait_s > until:
                return None
            time.sleep(wait_s)

    # --- the picture ---

    def _row(self, prompt: str, seed: int, answer: dict) -> Request:
        run = {name: answer.get(name, value) for name, value in self.run.items()}
        return Request(prompt, seed, run["num_steps"], 0, run["guidance_scale"], run["scheduler"])

    def _finish(
        self, start: Request | Packet, where: str, began: float, asked: float, answer: dict, spans: dict
    ) -> Drawn:
        """Run the steps that are left, make the picture, tell the edge."""
        received = time.perf_counter()
        image, stepped, late = finish(self.user, start, self.pace_s)
        done = time.perf_counter()
        edge_s = sum(spans.get(name, 0.0) for name in ("queue_s", "steps_s", "hand_over_s", "held_s"))
        seconds = dict(
            ask_s=asked - began,
            transfer_s=max(0.0, received - began - edge_s),
            device_s=stepped - received,
            decode_s=done - stepped,
            total_s=done - began,
        )
        steps = start.step if isinstance(start, Packet) else 0
        drawn = Drawn(image, where, steps, seconds, answer.get("predicted", {}), spans, late)
        if answer:
            self._acknowledge(answer["id"], drawn)
        return drawn

    def _keep(self, answer: dict, packet: Packet) -> None:
        if self.folder is not None:
            write_atomically(self.folder / f"{answer['id']}.json", json.dumps(answer).encode())
            write_atomically(self.folder / f"{answer['id']}.packet", packet.to_bytes())

    def _acknowledge(self, name: str, drawn: Drawn) -> None:
        body = {part: drawn.seconds[part] for part in ("transfer_s", "device_s", "decode_s", "total_s")}
        body["late_steps"] = drawn.late_steps
        patience, self.patience_s = self.patience_s, min(2.0, self.patience_s)
        try:
            self._send("POST", f"/v1/requests/{name}/picture", content=as_png(drawn.image))
            self._send("POST", f"/v1/requests/{name}/ack", json=body)
        finally:
            self.patience_s = patience
        if self.folder is not None:
            for ending in (".packet", ".json"):
                (self.folder / f"{name}{ending}").unlink(missing_ok=True)


def _words(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])[:200]
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"


def main() -> None:
    """``splitpoint device``."""
    import argparse

    from splitpoint.diffusion.hybrid import load_mini_hybrid
    from splitpoint.diffusion.users import mini_users

    parser = argparse.ArgumentParser(
        prog="splitpoint device",
        description="Draw pictures in a personal style, the first steps on an edge.",
        epilog="example: splitpoint device --edge http://127.0.0.1:8765 --token … --style noto --prompt 'red apple'",
    )
    parser.add_argument("--edge", required=True, help="address of the edge, http://…")
    parser.add_argument("--token", required=True, help="as the edge printed it")
    parser.add_argument("--style", default="noto", choices=mini_users(), help="personal model")
    parser.add_argument("--prompt", action="append", help="what to draw, 'red apple' if left out; may be given often")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; each next one is one higher")
    worth = "seconds worth one unit of accuracy (default %(default)g)"
    parser.add_argument("--alpha", type=float, default=5.0, help=worth)
    parser.add_argument("--deadline", type=float, help="seconds")
    pace = "seconds of a step (default %(default)s), or the name of a published device"
    parser.add_argument("--pace", default="0.1", help=pace)
    parser.add_argument("--keep", type=Path, help="folder for packets, to go on from after a restart")
    folder = "folder for the pictures (default %(default)s)"
    parser.add_argument("--out", type=Path, default=Path("results/pictures"), help=folder)
    options = parser.parse_args()
    check_address("edge", options.edge)
    pace_s = pace_of(options.pace)
    options.out.mkdir(parents=True, exist_ok=True)
    user = load_mini_hybrid().users[options.style]
    device = Device(options.edge, options.token, user, pace_s=pace_s, folder=options.keep)
    try:
        if not device.reaches():
            print(
                f"{options.edge} does not answer; each picture waits {device.patience_s:g} s for it, "
                "then is drawn here alone"
            )
        where = set()
        for drawn in device.resume():
            print(f"finished a saved packet: {drawn.steps} steps were the edge's")
        for number, prompt in enumerate(options.prompt or ["red apple"]):
            drawn = device.draw(prompt, options.seed + number, options.alpha, options.deadline)
            name = "".join(letter if letter.isalnum() else "-" for letter in prompt)[:40]
            file = options.out / f"{options.style}-{name}-{options.seed + number}.png"
            drawn.image.save(file)
            said = drawn.predicted.get("total_s")
            said = "" if said is None else f", predicted {said:.2f} s"
            print(f"{file}: {drawn.where}, {drawn.steps} edge steps, {drawn.seconds['total_s']:.2f} s{said}")
            where.add(drawn.where)
        if "home" in where:
            print("home: the steps of this edge cost more than this device gains by them; see --alpha and --pace")
    finally:
        device.close()


def pace_of(text: str) -> float:
    """Seconds of a step: a number, or a published device by its name.

    Raises:
        ValueError: naming the devices that are known.
    """
    from splitpoint.offloading import hardware

    try:
        pace = float(text)
    except ValueError:
        pace = hardware.device(text).step_s
    finite_number("pace", pace, 0.0, open_end=True)
    return pace
