"""``GET /healthz``: whether the services behind this door take requests."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from rewardloop_client import AsyncRewardloopClient, RewardloopError

_SERVICES = {"reward": "rewardloop.v1.RewardService", "feedback": "rewardloop.v1.FeedbackService"}
_POLICY = {"policy": "rewardloop.v1.PolicyService"}
_TIMEOUT_S = 2.0


class Health(BaseModel):
    """Which services take requests. The door is ready if scores and feedback are; not every deployment has a policy."""

    status: str = Field(description="serving or not_serving")
    services: dict[str, bool]


def routes(client: AsyncRewardloopClient) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz", response_model=Health, responses={503: {"model": Health}})
    async def healthz() -> JSONResponse:
        """Ask the services. The status is 200 if scores and feedback are taken, else 503."""
        found = {name: await _is_serving(client, service) for name, service in {**_SERVICES, **_POLICY}.items()}
        is_ready = all(found[name] for name in _SERVICES)
        body = {"status": "serving" if is_ready else "not_serving", "services": found}
        return JSONResponse(body, 200 if is_ready else 503)

    return router


async def _is_serving(client: AsyncRewardloopClient, service: str) -> bool:
    try:
        return await client.health(service, timeout_s=_TIMEOUT_S)
    except RewardloopError:
        return False
