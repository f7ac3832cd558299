"""What is let in: the key, the size and the form of bodies."""

import hmac
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

M = TypeVar("M", bound=BaseModel)


class Refusal(HTTPException):
    """A request that is answered with an error in OpenAI's form."""

    def __init__(
        self, status: int, message: str, code: str | None = None,
        headers: dict[str, str] | None = None,
    ):  # fmt: skip
        super().__init__(status, message, headers)
        self.code = code


@dataclass(frozen=True)
class Guard:
    """Limits of one server.

    Attributes:
        key: What clients must send as a bearer token; ``None``: nothing.
        body_bytes: Longest body.
    """

    key: str | None = None
    body_bytes: int = 1 << 20

    async def check_key(self, request: Request) -> None:
        """Refuse a wrong key.

        Raises:
            Refusal: 401.
        """
        if self.key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.key.encode())
        if scheme.lower() != "bearer" or not same:
            raise Refusal(
                401, "A wrong API key, or none; send Authorization: Bearer KEY.", "invalid_api_key",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip


async def read(request: Request, form: type[M], guard: Guard) -> M:
    """Read a body of JSON, no more of it than is allowed.

    A page of another site can send a form or plain text here, but no JSON without being asked for
    permission, which is never given.

    Raises:
        Refusal: 400, 413 or 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, f"Content-Type is {kind or 'not given'}; application/json is wanted.")
    raw = bytearray()
    try:
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > guard.body_bytes:
                raise Refusal(413, f"The body is longer than {guard.body_bytes} bytes.")
    except ClientDisconnect:
        raise Refusal(400, "The body broke off.") from None
    try:
        return form.model_validate_json(bytes(raw))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function"))
        raise Refusal(400, f"{place + ': ' if place else ''}{first['msg']}") from None
