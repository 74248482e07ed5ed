"""Reads forms, and refuses those that did not come from a page of the console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import parse_qs

from starlette.requests import Request

from rewardloop_console.refusals import Refusal

_KIND = "application/x-www-form-urlencoded"
_MOST_FIELDS = 1000
FORM_TOKEN = "form_token"
FORM_TOKEN_HEADER = "x-form-token"


class Form(Mapping[str, str]):
    """The fields of a form by name. A field that is sent several times has its last value; `all` returns each."""

    def __init__(self, fields: Mapping[str, list[str]]) -> None:
        self._fields = fields

    def __getitem__(self, name: str) -> str:
        return self._fields[name][-1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def all(self, name: str) -> list[str]:
        """Return every value of a field, in order."""
        return self._fields.get(name, [])


async def read_form(request: Request) -> Form:
    """Return the fields of a form. Raises Refusal if the body is none."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _KIND:
        raise Refusal(415, f"The body is not {_KIND}.")
    body = await request.body()
    try:
        return Form(parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError as error:
        raise Refusal(400, "The form cannot be read.") from error


def check_origin(request: Request) -> None:
    """Raise Refusal if another site's page, or a program without a browser's headers, has sent the form.

    Behind a proxy that speaks HTTPS the browser's origin is https, and the host is the same.
    """
    host = request.headers.get("host", "")
    own = {f"{request.url.scheme}://{host}", f"https://{host}"}
    site = request.headers.get("sec-fetch-site", "same-origin")
    if request.headers.get("origin") not in own or site != "same-origin":
        raise Refusal(403, "This form was not sent by a page of the console.")


def check_form_token(given: str, is_right: bool) -> None:
    """Raise Refusal if a form's token is missing or another browser's."""
    if not given or not is_right:
        raise Refusal(403, "This form is too old, or not from this browser. Load the page again.")
