"""The row "Learning": the rounds, the gates that candidates pass, what the policy learns, and the training steps."""

from __future__ import annotations

from rewardloop_observability.panels import Panel, graph
from rewardloop_observability.queries import AT, OF, increase, quantiles, rate

_POLICY_GATE = "rewardloop_trainer_policy_gate"


def panels() -> list[Panel]:
    return [*_rounds(), *_gates(), *_policy(), _refusals(), *_steps()]


def _rounds() -> list[Panel]:
    return [
        graph(
            "Phase of the round",
            "short",
            (f'max by (model, phase) (rewardloop_trainer_phase{{{OF}, phase!="idle"}})', "{{model}} {{phase}}"),
            ("max(rewardloop_trainer_leading)", "a trainer leads"),
            about="1 for the phase that the model's round is in.",
        ),
        graph(
            "Rounds by outcome",
            "short",
            (increase("rewardloop_trainer_rounds_total", "model, outcome"), "{{model}} {{outcome}}"),
            about="Number of rounds that end in each interval.",
        ),
        graph(
            "New signals over what starts a round",
            "percentunit",
            (
                f"max by (model) (rewardloop_trainer_new_signals{{{OF}}} / rewardloop_trainer_min_signals{{{OF}}})",
                "{{model}}",
            ),
            about="A round is due from 100% on.",
        ),
    ]


def _gates() -> list[Panel]:
    return [
        graph(
            "Reward model: held-out accuracy",
            "percentunit",
            ("max by (side) (rewardloop_trainer_heldout_accuracy)", "{{side}}"),
            about="Accuracy on held-out pairs at the last gate, of the candidate and of the version that was live.",
            highest=1,
        ),
        graph(
            "Reward gate",
            "short",
            (
                "max by (figure) (rewardloop_trainer_reward_gate"
                '{figure=~"gate_gain.*|gate_best_gain|gate_parity|gate_needed"})',
                "{{figure}}",
            ),
            about="A candidate passes if the lower bound of its gain in log-likelihood over the live one is above 0,"
            " it is no worse than the best version so far, and the exported model agrees with the trained one."
            " gate_needed is how many more held-out prompts a decision needs.",
            lowest=None,
        ),
        graph(
            "Policy: win rate over the live one",
            "percentunit",
            (
                f'max by (figure) ({_POLICY_GATE}{{figure=~"gate_win_rate.*|live_win_rate.*"}})',
                "{{figure}}",
            ),
            about="Win rate at the gate and in the live test, with its bounds.",
            highest=1,
        ),
        graph(
            "Policy: KL and collapse",
            "short",
            (
                f'max by (figure) ({_POLICY_GATE}{{figure=~"gate_kl|gate_length_ratio|gate_perplexity_ratio|'
                'gate_anchor_.*"})',
                "{{figure}}",
            ),
            about="Figures of the last gate: KL to the live policy and the anchor, length and perplexity over theirs.",
            lowest=None,
        ),
    ]


def _policy() -> list[Panel]:
    return [
        graph(
            "Policy: score, reward, KL while learning",
            "short",
            (f"max(rewardloop_trainer_score{{{AT}}})", "score"),
            (f"max(rewardloop_trainer_reward{{{AT}}})", "reward"),
            (f"max(rewardloop_trainer_kl{{{AT}}})", "KL, nats"),
            (f"max(rewardloop_trainer_max_kl{{{AT}}})", "KL at most"),
            (increase("rewardloop_trainer_steps_taken_back_total", "", AT), "rounds that ended early by it"),
            about="A score that rises while KL grows fast is an early sign of reward hacking.",
            lowest=None,
        ),
        graph(
            "Policy: sampler and learner",
            "short",
            (f"max by (figure) (rewardloop_trainer_sampler_difference{{{AT}}})", "{{figure}}"),
            about="Differences of their log-probabilities, in nats a token. A run stops above its limit of KL.",
        ),
        graph(
            "Hacking watch",
            "short",
            ("max(rewardloop_reward_hacking)", "halted"),
            (f'max({_POLICY_GATE}{{figure="gate_score_win_rate"}})', "win rate by score"),
            (f'max({_POLICY_GATE}{{figure="gate_win_rate"}})', "win rate by the witness"),
            about="A policy that wins by score and loses by the independent witness exploits the reward model.",
            highest=1,
        ),
    ]


def _refusals() -> Panel:
    return graph(
        "Refusals by rule",
        "short",
        (increase("rewardloop_trainer_refusals_total", "model, rule"), "{{model}} {{rule}}"),
        about="Number of candidates that were refused in each interval, by the rules that they broke.",
    )


def _steps() -> list[Panel]:
    return [
        graph(
            "Loss",
            "short",
            (f"max by (model) (rewardloop_trainer_loss{{{OF}}})", "{{model}}"),
            about="Loss of the last step.",
            lowest=None,
        ),
        graph(
            "Gradients",
            "short",
            (f"max by (model) (rewardloop_trainer_gradient_norm{{{OF}}})", "{{model}} norm"),
            (increase("rewardloop_trainer_nonfinite_gradients_total", "model"), "{{model}} rounds that broke"),
            about="Norm of the gradients before clipping, and the number of rounds that ended because gradients were"
            " not finite.",
        ),
        graph(
            "Steps",
            "s",
            *quantiles("rewardloop_trainer_step_seconds", "model", OF),
            about="Time of a step.",
        ),
        graph(
            "Steps a second",
            "short",
            (rate("rewardloop_trainer_steps_total", "model", OF), "{{model}}"),
            about="0 while nothing trains.",
        ),
    ]
