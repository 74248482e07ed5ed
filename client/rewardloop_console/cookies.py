"""The cookies of the console, which only requests below its path carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from rewardloop_console.navigation import PREFIX


@dataclass(frozen=True, slots=True)
class Cookie:
    """How the cookie is set.

    Attributes:
        name: Its name. Ports of one host share their cookies, so that each deployment has a name of its own.
        is_secure: A browser sends it over HTTPS alone.
        same_site: "strict": no request that another site begins has it. "lax": one that only leads here has it.
        path: Where it is sent.
    """

    name: str
    is_secure: bool
    same_site: Literal["strict", "lax"] = "strict"
    path: str = PREFIX

    @classmethod
    def at(cls, port: int, is_loopback: bool) -> Cookie:
        """Return the cookie of a console. On loopback there is no HTTPS, and nobody listens on the way."""
        return cls(f"{'' if is_loopback else '__Secure-'}rewardloop-console-{port}", not is_loopback)

    def read(self, request: Request) -> str:
        """Return the value in a request, or "" if it has none."""
        return request.cookies.get(self.name, "")

    def write(self, response: Response, value: str) -> None:
        """Set it until the browser closes. Scripts cannot read it."""
        response.set_cookie(
            self.name, value, path=self.path, secure=self.is_secure, httponly=True, samesite=self.same_site
        )

    def delete(self, response: Response) -> None:
        """Take it from the browser."""
        response.delete_cookie(self.name, path=self.path, secure=self.is_secure, httponly=True, samesite=self.same_site)
