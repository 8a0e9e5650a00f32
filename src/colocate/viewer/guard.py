"""Who may ask: whoever has the token, by an address that is this machine's; and what a page may do with the answer."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",  # a slide stays nowhere but in its file
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@final
class Guard:
    """An ASGI application in front of another: 403 without the token or for another Host, strict headers for all.

    The token comes as `?token=`, once: the answer sets a cookie of that name and value. Cookies are those of a host,
    whatever the port, so that the cookie's name says the port.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Collection[str], port: int) -> None:
        """hosts: names of this machine by which it may be asked; a page elsewhere whose name now means this machine
        (DNS rebinding) still says its own name."""
        self.app = app
        self.token = token
        self.hosts = {host.lower() for host in hosts}
        self.cookie = f"colocate-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no websockets here; of a lifespan nothing is asked
            return
        request = Request(scope)
        known = _name(request.headers.get("host", "")) in self.hosts
        by_address = known and any(map(self._is_token, request.query_params.getlist("token")))

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = MutableHeaders(scope=message)
                told.update(HEADERS)
                if by_address:
                    told.append("Set-Cookie", f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/")
            await send(message)

        if not known:
            await PlainTextResponse("this is not the address that was printed", 403)(scope, receive, answer)
        elif not by_address and not self._is_token(request.cookies.get(self.cookie, "")):
            sentence = "open the whole address that `colocate view` printed, with its token"
            await PlainTextResponse(sentence, 403)(scope, receive, answer)
        else:
            await self.app(scope, receive, answer)

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), self.token.encode())


def _name(host: str) -> str:
    """A Host header without its port.

    >>> _name("localhost:80"), _name("[::1]:80"), _name("LOCALHOST")
    ('localhost', '::1', 'localhost')
    """
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name = host
    return name.removeprefix("[").removesuffix("]").lower()
