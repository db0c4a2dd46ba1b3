"""What may be said over the network, and by whom: bodies with bounds, tokens, errors of one line."""

import hashlib
import hmac
import io
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Literal

from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

MAX_BODY = 16_384  # bytes of a request
MAX_PICTURE = 262_144  # bytes of a picture that a device shows
MAX_PROMPT = 1_000  # characters
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
KEY = re.compile(r"[A-Za-z0-9_.:-]{1,80}")


def _printable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be text without lone surrogates") from error
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT), AfterValidator(_printable)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Ask(_Body):
    """One picture that a device asks for.

    ``device_step_s`` is a denoising step on the device; ``alpha`` are the seconds that one unit of accuracy is worth;
    ``deadline_s`` counts from now.
    """

    prompt: Text
    seed: int = Field(default=0, ge=0, lt=2**63)
    device_step_s: Seconds
    alpha: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    deadline_s: Seconds | None = None


class Timings(_Body):
    """What a device measured, all durations: the hand-over, its steps, the picture, all from asking to seeing."""

    transfer_s: float = Field(ge=0, le=86_400, allow_inf_nan=False)
    device_s: float = Field(ge=0, le=86_400, allow_inf_nan=False)
    decode_s: float = Field(ge=0, le=86_400, allow_inf_nan=False)
    total_s: Seconds
    late_steps: int = Field(default=0, ge=0, le=10_000)


class Images(_Body):
    """The door in the style of OpenAI's images: the whole picture on the edge, in the cluster's style."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)
    prompt: Text
    n: Literal[1] = 1
    response_format: Literal["b64_json"] = "b64_json"
    seed: int = Field(default=0, ge=0, lt=2**63)


class Join(_Body):
    """A student who joins a class."""

    code: str = Field(min_length=1, max_length=40)
    name: str = Field(min_length=1, max_length=40)


def read_body(kind: type[BaseModel], content: bytes):
    """A body as one of the above.

    Raises:
        ValueError: in one line that names the field; nothing of another field's value is repeated.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:60] or "body"
        raise ValueError(f"{field}: {first['msg']}"[:200]) from None


def as_png(image: Image.Image) -> bytes:
    """A picture as it travels."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def check_name(name: str) -> str:
    """A user's name; it becomes part of no path, but of pages and files of others.

    Raises:
        ValueError: for anything but letters, digits, ``_``, ``.`` and ``-``.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError("name must be 1 to 40 letters, digits, '_', '.' or '-', and begin with a letter or digit")
    return name


def check_address(name: str, url: str) -> None:
    """Refuse what is no address of an edge, with an example of one."""
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise ValueError(f"{name}={url!r} is no address; valid is one like http://127.0.0.1:8765")


class Tokens:
    """Who may speak: a token for each user, kept as a hash and compared in constant time.

    Args:
        given: name -> token.
    """

    def __init__(self, given: Mapping[str, str]):
        self._digests: dict[str, bytes] = {}
        for name, token in given.items():
            self.add(name, token)

    def add(self, name: str, token: str | None = None) -> str:
        """A user and their token, a new one if none is given.

        Raises:
            ValueError: for a bad name, a name that is taken, or a token of fewer than 8 characters.
        """
        check_name(name)
        if name in self._digests:
            raise ValueError(f"name {name!r} is taken")
        token = secrets.token_hex(16) if token is None else token  # letters and digits: no shell takes it for an option
        if not isinstance(token, str) or len(token) < 8:
            raise ValueError("token must have 8 characters at least")
        self._digests[name] = _digest(token)
        return token

    def user(self, header: str | None) -> str | None:
        """Whose ``Authorization`` header this is; None for nobody's. Takes as long for every token."""
        scheme, _, token = (header or "").partition(" ")
        digest, found = _digest(token), None
        for name, known in self._digests.items():
            found = name if hmac.compare_digest(digest, known) else found
        return found if scheme.lower() == "bearer" else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
