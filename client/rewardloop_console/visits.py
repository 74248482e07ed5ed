"""What a page gets: the request of somebody who has signed in and may see it, and the client that calls for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from rewardloop_client import AsyncRewardloopClient
from rewardloop_console.forms import Form
from rewardloop_console.navigation import PLACES, PREFIX, Place
from rewardloop_console.rendering import render
from rewardloop_console.sessions import Session


@dataclass(frozen=True, slots=True)
class Visit:
    """A request of somebody who has signed in.

    Attributes:
        request: The request.
        session: The person.
        client: Calls the services with the person's token, so that rules, quotas, roles and the audit log are theirs.
        form: The fields of a POST, which came from a page of this console; empty for a GET.
        form_token: What each form of this browser carries in the field `forms.FORM_TOKEN`.
        place: The page that this request belongs to.
    """

    request: Request
    session: Session
    client: AsyncRewardloopClient
    form: Form
    form_token: str
    place: Place

    @property
    def is_partial(self) -> bool:
        """Whether htmx asks for a part of the page."""
        return self.request.headers.get("hx-request") == "true"

    def may(self, *roles: str) -> bool:
        """Return whether the person has one of these roles. It decides what is shown; the services decide the rest."""
        return not self.session.identity.roles.isdisjoint(roles)

    def query(self, name: str, default: str = "") -> str:
        """Return a parameter of the address."""
        return self.request.query_params.get(name, default)

    def to(self, path: str) -> RedirectResponse:
        """Return the way to an address of the console, after something was done."""
        return RedirectResponse(PREFIX + path, 303)

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a whole page. The template extends ``layout.html``, and gets the visit and these values."""
        places = [place for place in PLACES if place.is_open_to(self.session.identity.roles)]
        return HTMLResponse(render(template, visit=self, places=places, **values), status)

    def part(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a part of a page, which htmx puts in its place."""
        return HTMLResponse(render(template, visit=self, **values), status)


Answer: TypeAlias = Callable[[Visit], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Path:
    """An address of the console.

    Attributes:
        method: GET or POST. Only a POST changes something.
        path: The address below `navigation.PREFIX`, with parameters as Starlette writes them.
        answer: Answers it.
        place: The page that it belongs to.
        roles: Roles of which a person needs one; by default those of the page.
    """

    method: str
    path: str
    answer: Answer
    place: Place
    roles: frozenset[str] = frozenset()

    @property
    def needed(self) -> frozenset[str]:
        """The roles of which a person needs one."""
        return self.roles or self.place.roles
