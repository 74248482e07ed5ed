"""What a decision about versions does, in words, and how it is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from rewardloop.formats.mixing.names import POLICY
from rewardloop.v1 import operations_pb2
from rewardloop_client import AsyncRewardloopClient, VersionInfo
from rewardloop_console.refusals import Refusal

Action: TypeAlias = Literal["promote", "rollback", "canary", "shadow", "end-canary", "end-shadow"]
ACTIONS: tuple[Action, ...] = get_args(Action)
TITLES: dict[Action, str] = {
    "promote": "Promote",
    "rollback": "Roll back",
    "canary": "Start a canary",
    "shadow": "Start a shadow",
    "end-canary": "End the canary",
    "end-shadow": "End the shadow",
}
_MOST_REASON = 300


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person is about to decide.

    Attributes:
        action: What is done.
        model: To which model.
        version: The version that it is about; of a rollback the one that comes back.
        expected: The version that is live as the person sees it; "" if none is.
        share: Share of the requests of a canary or shadow, from 0 to 1; 0 for other actions.
        reason: Why, in the person's words.
    """

    action: Action
    model: str
    version: str
    expected: str
    share: float = 0.0
    reason: str = ""

    @property
    def title(self) -> str:
        """The decision in a few words."""
        if self.action in ("end-canary", "end-shadow"):
            return f"{TITLES[self.action]} of {self.model}"
        if self.action == "rollback":
            return f"Roll {self.model} back to version {self.version}"
        return f"{TITLES[self.action]}: {self.model} version {self.version}"

    @classmethod
    def of(cls, fields: dict[str, str]) -> Decision:
        """Read the fields of a form or an address. Raises Refusal."""
        action = next((each for each in ACTIONS if each == fields.get("action")), None)
        if action is None:
            raise Refusal(400, "This is no decision that the console knows.")
        reason = fields.get("reason", "").strip()
        if len(reason) > _MOST_REASON:
            raise Refusal(400, f"The reason has more than {_MOST_REASON} characters.")
        share = _share(fields.get("percent", "")) if action in ("canary", "shadow") else 0.0
        return cls(
            action, fields.get("model", ""), fields.get("version", ""), fields.get("expected", ""), share, reason
        )


def consequences(decision: Decision, status: operations_pb2.ModelStatus, version: VersionInfo | None) -> list[str]:
    """Return what will happen, as sentences. ``version`` is the one that it is about."""
    live = status.active_version
    match decision.action:
        case "promote":
            said = [
                f"Version {decision.version} is loaded and warmed beside version {live or 'none'}; then every server "
                "switches to it. No request fails meanwhile."
            ]
            said += _about_parent(live, version)
            if decision.version in status.rejected_versions:
                said.append(f"Version {decision.version} was rolled back before. Promoting it takes that back.")
            if status.promotions_held:
                said.append("The hold of the last rollback ends, so trainers promote versions again.")
        case "rollback":
            said = [
                f"Version {decision.version}, which was live before, is loaded and becomes live again on every server.",
                f"Version {live} is rejected: no trainer promotes it again until a person does.",
                "Trainers are held: they promote nothing until a person promotes a version, which may be the live one.",
            ]
        case "canary":
            answers = "answers" if decision.model == POLICY else "scores"
            said = [
                f"Version {decision.version} {answers} {decision.share:.1%} of the requests, version {live} the "
                "others. The prompt decides, so that the same prompt gets the same version.",
                "It ends when somebody ends it or promotes any version.",
            ]
        case "shadow":
            said = [
                f"Version {decision.version} scores {decision.share:.1%} of the requests as well, after they were "
                "answered. Its scores are compared in the metrics and never returned."
            ]
        case _:
            role = decision.action.removeprefix("end-")
            said = [f"Version {live} gets all requests of {decision.model} again, and there is no {role} any more."]
    if decision.action in ("promote", "rollback") and (status.HasField("canary") or status.HasField("shadow")):
        said.append("The canary and the shadow end.")
    return [*said, f"If another version than {live or 'none'} is live by then, nothing happens and you are told."]


async def carry_out(client: AsyncRewardloopClient, decision: Decision, person: str) -> None:
    """Do what was decided. Raises Refusal and RewardloopError."""
    reason = f"{person} in the console" + (f": {decision.reason}" if decision.reason else "")
    model, expected = decision.model, decision.expected or None
    if decision.action == "promote":
        await client.promote(model, decision.version, reason=reason, expected_version=expected)
        return
    if decision.action == "rollback":
        await client.rollback(model, reason=reason, expected_version=expected)
        return
    version = None if decision.action.startswith("end-") else decision.version
    change = client.set_canary if decision.action.endswith("canary") else client.set_shadow
    await change(model, version, share=decision.share, reason=reason, expected_version=expected)


def _about_parent(live: str, version: VersionInfo | None) -> list[str]:
    if version is None or not live or version.version == live:
        return []
    if not version.parent_version:
        return [f"It has no parent version, so no gate has compared it with version {live}."]
    if version.parent_version != live:
        return [
            f"It learned from version {version.parent_version}, not from the live version {live}: its gate has not "
            "compared the two."
        ]
    return [f"Its gate compared it with the live version {live}."]


def _share(percent: str) -> float:
    try:
        share = float(percent.replace(",", ".")) / 100
    except ValueError as error:
        raise Refusal(400, "The share is no number of percent.") from error
    if not 0 < share <= 1:
        raise Refusal(400, "The share is not above 0 and at most 100 percent.")
    return share
