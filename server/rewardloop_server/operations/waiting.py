"""Says in words what a model waits for."""

from __future__ import annotations

from rewardloop.formats.mixing.names import POLICY
from rewardloop.v1 import operations_pb2

# What a round does in each phase: the phase names the step that it finished last.
_DOES = {
    "training": "trains",
    "trained": "is exported and judged",
    "exported": "is judged by its gate",
    "gated": "is published",
    "published": "is brought into service",
    "promoted": "ends",
}
_POLICY_DOES = {"trained": "is judged by its gate"}


def waiting_for(status: operations_pb2.ModelStatus, trainer_reports: bool, now_s: float) -> str:
    """Return a sentence about what happens next to a model.

    Args:
        status: All else that is known of it.
        trainer_reports: Whether any trainer has reported lately.
        now_s: The present time, in Unix seconds.
    """
    model = status.model
    if not trainer_reports:
        return f"{model}: a trainer. None has reported in the last minute, so nothing is archived and nothing learns."
    if not status.HasField("training"):
        return f"{model}: nothing. The trainer does not train it."
    training = status.training
    if status.promotions_held:
        return f"{model}: a person. A rollback holds it until somebody promotes a version, which may be the active one."
    if training.phase != "idle":
        does = (_POLICY_DOES if model == POLICY else {}).get(training.phase) or _DOES.get(training.phase, "runs")
        pause = f" It pauses: {training.pause_reason}." if training.pause_reason else ""
        return f"{model}: its round, which {does}.{pause}"
    return f"{model}: {_signals(training, now_s)}{_gate(training)}"


def _signals(training: operations_pb2.TrainingStatus, now_s: float) -> str:
    missing = max(0, training.least_signals - training.new_signals)
    if not missing:
        return "its turn. A round starts next."
    more = f"{missing:,} more {'comparison' if missing == 1 else 'comparisons'}"
    if not training.new_signals or not training.HasField("last_round_end_time"):
        return f"{more}."
    left_s = training.last_round_end_time.ToNanoseconds() / 1e9 + training.longest_interval_s - now_s
    return f"{more}, or {_duration(left_s)}, whichever comes first."


def _gate(training: operations_pb2.TrainingStatus) -> str:
    if not (needs := training.gate_needs_prompts):
        return ""
    prompts = "prompt" if needs == 1 else "prompts"
    return f" Its last gate lacked {needs:,} held-out {prompts} with an opinion to decide."


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    if minutes < 120:
        return f"{minutes} {'minute' if minutes == 1 else 'minutes'}"
    return f"{round(minutes / 60)} hours"
