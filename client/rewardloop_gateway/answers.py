"""Errors as JSON: HTTP statuses by the table of google.rpc.Code, and a reason that programs can read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

from rewardloop.process.http_status import HTTP_STATUS
from rewardloop_client import MessageTooLarge, RewardloopError, Violation

_MOST_VIOLATIONS = 20
# The OpenAI API's words for the kind of an error, by status.
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Problem(Exception):
    """Raised for an answer that is an error.

    Args:
        status: The HTTP status.
        reason: The reason, such as INVALID_REQUEST.
        message: What went wrong.
        violations: The fields that break a rule.
        retry_after_s: Seconds after which another attempt may succeed; None if that is not known.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """Return the JSON of the OpenAI API, with the reason and the fields beside it."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error: dict[str, Any] = {
            "message": text_of(self.message),
            "type": kind,
            "param": text_of(self.violations[0].field) if self.violations else None,
            "code": self.reason,
            "reason": self.reason,
            "violations": [{"field": text_of(v.field), "description": text_of(v.description)} for v in self.violations],
        }
        if self.retry_after_s is not None:
            error["retry_after_s"] = self.retry_after_s
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Return the headers of the answer."""
        found = {} if self.retry_after_s is None else {"retry-after": str(math.ceil(self.retry_after_s))}
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found

    def answer(self) -> JSONResponse:
        """Return the answer."""
        return JSONResponse(self.body(), self.status, self.headers())


def problem_of(error: RewardloopError, names: Mapping[str, str] | None = None) -> Problem:
    """Return the answer for a failed call.

    Args:
        error: The failure.
        names: What the HTTP API calls the fields of the gRPC one, for those that have another name.
    """
    status = 413 if isinstance(error, MessageTooLarge) else HTTP_STATUS.get(error.code, 500)
    renamed = [Violation(_renamed(v.field, names or {}), v.description) for v in error.violations]
    message = error.message
    for old, new in zip(error.violations, renamed, strict=True):
        if old.field and old.field != new.field:
            message = message.replace(old.field, new.field)
    reason = error.reason or ("MESSAGE_TOO_LARGE" if status == 413 else error.code.name)
    return Problem(status, reason, message, renamed, error.retry_after_s)


def invalid(violations: Iterable[Violation]) -> Problem:
    """Return the answer for a request that breaks rules."""
    found = tuple(violations)
    return Problem(400, "INVALID_REQUEST", "; ".join(f"{v.field}: {v.description}" for v in found), found)


def refused(field: str, description: str) -> Problem:
    """Return the answer for one field that cannot be honoured."""
    return invalid([Violation(field, description)])


def place(path: Iterable[str | int]) -> str:
    """Return a path of keys and indices as text, such as ``messages[0].role``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path if part != "")
    return text.removeprefix(".")


def _renamed(field: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if re.match(rf"{re.escape(old)}(?![\w])", field):
            return (new + field[len(old) :]).removeprefix(".")
    return field


def text_of(text: str) -> str:
    """Return the text without lone surrogates, which no JSON in UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()


def violations_of(errors: Sequence[Any], path: str = "") -> list[Violation]:
    """Return pydantic's errors as fields and what is wrong with each. What was sent is not repeated.

    Args:
        errors: The errors, with locations from what was read.
        path: Where what was read stands in the body, such as ``events[1]``.
    """
    return [_violation(error, path) for error in errors[:_MOST_VIOLATIONS]]


def _violation(error: Any, within: str) -> Violation:
    path = [within, *(part for part in error["loc"] if isinstance(part, int) or not part.startswith("~"))]
    match error["type"]:
        case "json_invalid":
            return Violation("body", "is no JSON")
        case "extra_forbidden":
            return Violation(place(path), "is not known here, and what may matter is not ignored")
        case "union_tag_invalid":
            known = str(error["ctx"]["expected_tags"]).replace("~", "").replace("'", "").replace(", many", "")
            return Violation(place([*path, "kind"]), f"is not one of {known}")
        case _:
            return Violation(place(path) or "body", str(error["msg"]))
