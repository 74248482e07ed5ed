"""Builds the app: its routes, and what every failure becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from rewardloop_client import AsyncRewardloopClient, RewardloopError
from rewardloop_gateway.answers import Problem, invalid, problem_of, refused, violations_of
from rewardloop_gateway.routes import chat, compatible, feedback, health, page, score
from rewardloop_gateway.shapes import ErrorBody

log = structlog.get_logger()

_REASONS = {404: "NO_SUCH_PATH", 405: "NO_SUCH_METHOD", 413: "MESSAGE_TOO_LARGE", 503: "TOO_MANY_REQUESTS"}
_DESCRIPTION = (
    "The services of rewardloop over HTTP. A bearer token goes to them unchanged, so that roles, quotas and rules are "
    "those of gRPC. Every error has a reason."
)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that a call may take: any but Generate, and Generate."""

    call_s: float
    generate_s: float


def build(client: AsyncRewardloopClient, times: Times, *, has_console: bool = False) -> FastAPI:
    """Return the app that answers by ``client``. ``has_console`` says whether the console is served beside it."""
    app = FastAPI(
        title="rewardloop",
        version="1",
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        responses={code: {"model": ErrorBody} for code in (400, 401, 403, 413, 415, 421, 429, 499, 503, 504)},
    )
    app.include_router(chat.routes(client, times.generate_s))
    app.include_router(feedback.routes(client))
    app.include_router(score.routes(client))
    app.include_router(compatible.routes(client))
    app.include_router(health.routes(client))
    app.include_router(page.routes(app, has_console=has_console))
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RewardloopError, _failed_call)
    app.add_exception_handler(RequestValidationError, _misshapen)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(RecursionError, _too_deep)
    app.add_exception_handler(Exception, _bug)
    return app


async def _problem(request: Request, error: Any) -> Response:
    return _shown(request, error)


async def _failed_call(request: Request, error: Any) -> Response:
    return _shown(request, problem_of(error))


async def _misshapen(request: Request, error: Any) -> Response:
    inside = [{**each, "loc": each["loc"][1:]} for each in error.errors()]  # the first part says that it is the body
    return _shown(request, invalid(violations_of(inside)))


async def _too_deep(request: Request, error: Any) -> Response:
    return _shown(request, refused("body", "is nested too deeply"))


async def _no_route(request: Request, error: Any) -> Response:
    reason = _REASONS.get(error.status_code, "INVALID_REQUEST")
    problem = Problem(error.status_code, reason, str(error.detail))
    return JSONResponse(problem.body(), problem.status, {**(error.headers or {}), **problem.headers()})


async def _bug(request: Request, error: Any) -> Response:
    log.error("request failed", path=request.url.path, exc_info=error)
    return Problem(500, "INTERNAL", "a bug; the log has more").answer()


def _shown(request: Request, problem: Problem) -> Response:
    log.debug("refused", path=request.url.path, status=problem.status, reason=problem.reason)
    return problem.answer()
