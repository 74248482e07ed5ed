"""The versions of the client in memory, and which of them serve, by the server's rules."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from google.protobuf.message import Message

from rewardloop.formats.mixing.names import POLICY
from rewardloop.v1 import common_pb2, model_pb2, operations_pb2
from rewardloop_client import _calls as calls
from rewardloop_client._errors import (
    InvalidRequest,
    NothingToRollBack,
    PointerMoved,
    PromotionHeld,
    UnknownVersion,
    Violation,
)

M = TypeVar("M", bound=Message)


class FakeVersions:
    """The versions of each model, the history of the active one, and what answers beside it.

    Args:
        versions: The version numbers of each model; the last one is active.
    """

    def __init__(self, versions: Mapping[str, Iterable[str]]) -> None:
        self._known = {model: [*known] for model, known in versions.items()}
        self._active = {model: known[-1:] for model, known in self._known.items()}  # history, the last one active
        self._held: set[str] = set()  # models whose rollback holds the promotions of trainers
        self._rejected: set[tuple[str, str]] = set()  # models and versions that were rolled back
        self._beside: dict[tuple[str, str], tuple[str, float]] = {}  # model, role: version, share

    def answers(self) -> dict[str, Callable[..., Message]]:
        """Return the methods of the ModelService, but for its stream, by their paths."""
        return {
            calls.LIST_VERSIONS: self._list_versions,
            calls.GET_VERSION: self._get_version,
            calls.PROMOTE: self._promote,
            calls.ROLLBACK: self._rollback,
            calls.SET_CANARY: lambda request: self._set_role(request, "canary", model_pb2.SetCanaryResponse),
            calls.SET_SHADOW: lambda request: self._set_role(request, "shadow", model_pb2.SetShadowResponse),
        }

    def add(self, model: str, version: str) -> None:
        """Add a version without making it active."""
        self._known.setdefault(model, []).append(version)
        self._active.setdefault(model, [])

    def canary_for(self, model: str, prompt: common_pb2.Prompt) -> str:
        """Return the canary if it answers this prompt; else an empty text."""
        canary, share = self._beside.get((model, "canary"), ("", 0.0))
        return canary if zlib.crc32(prompt.SerializeToString(deterministic=True)) / 2**32 < share else ""

    def info(self, model: str, version: str) -> model_pb2.VersionInfo:
        """Return the version, or the active one for an empty text. Raises UnknownVersion."""
        if model not in self._known:
            raise InvalidRequest(f"{model!r} is not a model", violations=[Violation("model", "is not a known model")])
        active = self._active[model][-1] if self._active[model] else ""
        wanted = version or active
        if not wanted or wanted not in self._known[model]:
            raise UnknownVersion(f"{model} version {wanted or '(none active)'} is unknown")
        states = dict.fromkeys(self._known[model], model_pb2.VERSION_STATE_STORED)
        for role, state in (("shadow", model_pb2.VERSION_STATE_SHADOW), ("canary", model_pb2.VERSION_STATE_CANARY)):
            states[self._beside.get((model, role), ("", 0.0))[0]] = state
        states[active] = model_pb2.VERSION_STATE_ACTIVE
        ids = common_pb2.ModelVersion(version=wanted, digest=f"digest-{model}-{wanted}")
        return model_pb2.VersionInfo(model=model, version=ids, state=states[wanted])

    def _list_versions(self, request: model_pb2.ListVersionsRequest) -> model_pb2.ListVersionsResponse:
        infos = [self.info(request.model, version) for version in reversed(self._known.get(request.model, [""]))]
        return model_pb2.ListVersionsResponse(versions=infos, models=list(self._known))

    def _get_version(self, request: model_pb2.GetVersionRequest) -> model_pb2.GetVersionResponse:
        return model_pb2.GetVersionResponse(version=self.info(request.model, request.version))

    def _promote(self, request: model_pb2.PromoteRequest) -> model_pb2.PromoteResponse:
        self.info(request.model, request.version)
        history = self._active[request.model]
        previous = history[-1] if history else ""
        _check_expected(request, previous)
        if request.leader_epoch and request.model in self._held:
            raise PromotionHeld(f"{request.model} was rolled back: a person must promote a version first")
        if request.leader_epoch and (request.model, request.version) in self._rejected:
            raise PromotionHeld(f"{request.model} {request.version} was rolled back: only a person may promote it")
        self._held.discard(request.model)
        if not request.leader_epoch:
            self._rejected.discard((request.model, request.version))
        if request.version != previous:
            history.append(request.version)
        self._end_roles(request.model)
        return model_pb2.PromoteResponse(version=self.info(request.model, ""), previous_version=previous)

    def _rollback(self, request: model_pb2.RollbackRequest) -> model_pb2.RollbackResponse:
        self.info(request.model, "")
        if len(self._active[request.model]) < 2:
            raise NothingToRollBack(f"{request.model} has no earlier version")
        _check_expected(request, self._active[request.model][-1])
        self._held.add(request.model)
        previous = self._active[request.model].pop()
        self._rejected.add((request.model, previous))
        self._end_roles(request.model)
        return model_pb2.RollbackResponse(version=self.info(request.model, ""), previous_version=previous)

    def _set_role(self, request: model_pb2.SetCanaryRequest, role: str, response_type: type[M]) -> M:
        """Set or end a role by the server's rules. `SetShadowRequest` has the same fields as `SetCanaryRequest`."""
        if role == "shadow" and request.model == POLICY:
            raise InvalidRequest(f"only reward models take a {role}", violations=[Violation("model", "is policy")])
        _check_expected(request, (self._active.get(request.model) or [""])[-1])
        if not request.version:
            self._beside.pop((request.model, role), None)
            return response_type()
        if not (0 < request.share < 1 or (role == "shadow" and request.share == 1)):
            raise InvalidRequest("share is out of range", violations=[Violation("share", "is out of range")])
        if self.info(request.model, request.version).state == model_pb2.VERSION_STATE_ACTIVE:
            raise InvalidRequest("version is the active one", violations=[Violation("version", "is the active one")])
        self._beside[request.model, role] = (request.version, request.share)
        return response_type(version=self.info(request.model, request.version))

    def _end_roles(self, model: str) -> None:
        for role in ("canary", "shadow"):
            self._beside.pop((model, role), None)

    def statuses(self) -> list[operations_pb2.ModelStatus]:
        """Return what the OperationsService says of each model."""
        found = []
        for model, history in self._active.items():
            status = operations_pb2.ModelStatus(
                model=model,
                active_version=history[-1] if history else "",
                previous_versions=history[-2::-1],
                promotions_held=model in self._held,
                rejected_versions=sorted(version for of, version in self._rejected if of == model),
            )
            for role, holder in (("canary", status.canary), ("shadow", status.shadow)):
                if (model, role) in self._beside:
                    version, share = self._beside[model, role]
                    holder.CopyFrom(operations_pb2.VersionShare(version=version, share=share))
            found.append(status)
        return found


def _check_expected(
    request: model_pb2.PromoteRequest | model_pb2.RollbackRequest | model_pb2.SetCanaryRequest, active: str
) -> None:
    if active and request.HasField("expected_version") and request.expected_version != active:
        raise PointerMoved(f"{request.model} {active} is active, not {request.expected_version}")
