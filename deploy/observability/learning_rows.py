"""The rows about what is learned: feedback, learning; and the processes."""

from __future__ import annotations

from panels import Panel, graph
from queries import AT, EVERY, OF, quantile, quantiles, rate


def feedback() -> list[Panel]:
    return [
        graph(
            "Signals by outcome",
            "reqps",
            (rate("rewardloop_feedback_events_total", "outcome"), "{{outcome}}"),
            about="Recorded ones are in the durable stream; failed ones their callers send again.",
            stacked=True,
        ),
        graph(
            "Signals archived, by kind",
            "reqps",
            (rate("rewardloop_trainer_signals_total", "kind"), "{{kind}}"),
            (rate("rewardloop_trainer_duplicates_total", "job"), "known already"),
            about="Rows that reached the ledger.",
        ),
        graph(
            "Lag of the stream",
            "s",
            ("max(rewardloop_stream_lag_seconds)", "oldest entry not archived"),
            about="How long the oldest signal has waited to be archived.",
            amber=60,
            red=300,
        ),
        graph(
            "Entries in the stream",
            "short",
            ("max(rewardloop_stream_length)", "length"),
            ("max(rewardloop_stream_pending)", "read, not acknowledged"),
            about="What is archived is trimmed every 10 s.",
        ),
        graph(
            "Dead letters",
            "short",
            ("max(rewardloop_dead_letters)", "in the dead-letter stream"),
            about="Entries that could not be read.",
            red=1,
        ),
        graph(
            "Signal to live model",
            "s",
            *quantiles("rewardloop_feedback_to_live_seconds"),
            about="From a signal's arrival to the first reply of a version that learned from it.",
        ),
        graph(
            "Signals by source and slice",
            "reqps",
            (rate("rewardloop_trainer_source_signals_total", "source"), "source {{source}}"),
            (f"topk(10, {rate('rewardloop_trainer_slice_signals_total', 'slice')})", "slice {{slice}}"),
            about="The ten busiest slices.",
        ),
        graph(
            "Annotators",
            "short",
            (f"max(rewardloop_trainer_annotators{{{AT}}})", "people"),
            (f"100 * max(rewardloop_trainer_busiest_annotator_ratio{{{AT}}})", "percent from the busiest"),
            about="Since the trainer started. One person with most of the signals teaches the model one taste.",
        ),
        graph(
            "Redis",
            "short",
            (f"min by (job) (rewardloop_redis_up{{{AT}}})", "{{job}} answers"),
            (rate("rewardloop_trainer_redis_errors_total", "job"), "{{job}} errors/s"),
            about="1 while it answers.",
        ),
    ]


def learning() -> list[Panel]:
    gate = "rewardloop_trainer_policy_gate"
    return [
        graph(
            "Phase of the round",
            "short",
            (f'max by (model, phase) (rewardloop_trainer_phase{{{OF}, phase!="idle"}})', "{{model}} {{phase}}"),
            ("max(rewardloop_trainer_leading)", "a trainer leads"),
            about="1 for the phase that a round is in.",
        ),
        graph(
            "Rounds by outcome",
            "short",
            (
                f"sum by (model, outcome) (increase(rewardloop_trainer_rounds_total{{{OF}}}{EVERY}))",
                "{{model}} {{outcome}}",
            ),
            about="In each interval.",
        ),
        graph(
            "New signals over what starts a round",
            "percentunit",
            (
                f"max by (model) (rewardloop_trainer_new_signals{{{OF}}} / rewardloop_trainer_min_signals{{{OF}}})",
                "{{model}}",
            ),
            about="Above 1 a round is due.",
        ),
        graph(
            "Reward model: held-out accuracy",
            "percentunit",
            ("max by (side) (rewardloop_trainer_heldout_accuracy)", "{{side}}"),
            about="On held-out pairs, at the last gate: the candidate, and the version that was live.",
            highest=1,
        ),
        graph(
            "Reward gate",
            "short",
            (
                "max by (figure) (rewardloop_trainer_reward_gate"
                '{figure=~"gate_accuracy_difference.*|gate_parity|gate_tolerance"})',
                "{{figure}}",
            ),
            about="A candidate passes when the difference's interval is not below -tolerance, and parity holds.",
            lowest=None,
        ),
        graph(
            "Policy: win rate over the live one",
            "percentunit",
            (f'max by (figure) ({gate}{{figure=~"gate_win_rate.*|live_win_rate.*"}})', "{{figure}}"),
            about="At the gate, and in the live test, with 95% bounds.",
            highest=1,
        ),
        graph(
            "Policy: KL and collapse",
            "short",
            (f'max by (figure) ({gate}{{figure=~"gate_kl|gate_length_ratio|gate_perplexity_ratio"}})', "{{figure}}"),
            about="At the last gate.",
            lowest=None,
        ),
        graph(
            "Policy: score, reward, KL while learning",
            "short",
            (f"max(rewardloop_trainer_score{{{AT}}})", "score"),
            (f"max(rewardloop_trainer_reward{{{AT}}})", "reward"),
            (f"max(rewardloop_trainer_kl{{{AT}}})", "KL, nats"),
            about="Scores that rise while KL runs away are the beginning of reward hacking.",
            lowest=None,
        ),
        graph(
            "Hacking watch",
            "short",
            ("max(rewardloop_reward_hacking)", "halted"),
            (f'max({gate}{{figure="gate_score_win_rate"}})', "win rate by score"),
            (f'max({gate}{{figure="gate_win_rate"}})', "win rate by the witness"),
            about="By score it wins, by the witness it loses: the reward model is being exploited.",
            highest=1,
        ),
        graph(
            "Refusals by rule",
            "short",
            (
                f"sum by (model, rule) (increase(rewardloop_trainer_refusals_total{{{OF}}}{EVERY}))",
                "{{model}} {{rule}}",
            ),
            about="The rules that refused candidates broke.",
        ),
        graph(
            "Loss",
            "short",
            (f"max by (model) (rewardloop_trainer_loss{{{OF}}})", "{{model}}"),
            about="Of the last step.",
            lowest=None,
        ),
        graph(
            "Gradients",
            "short",
            (f"max by (model) (rewardloop_trainer_gradient_norm{{{OF}}})", "{{model}} norm"),
            (
                f"sum by (model) (increase(rewardloop_trainer_nonfinite_gradients_total{{{OF}}}{EVERY}))",
                "{{model}} rounds that broke",
            ),
            about="Norm before clipping; rounds that ended because gradients were no numbers.",
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


def processes() -> list[Panel]:
    return [
        graph(
            "Event loop lag",
            "s",
            (quantile(0.5, "rewardloop_event_loop_lag_seconds", "instance"), "p50 {{instance}}"),
            (quantile(0.99, "rewardloop_event_loop_lag_seconds", "instance"), "p99 {{instance}}"),
            about="How late a sleeping task is woken: whatever blocks the loop delays every request.",
            amber=0.02,
            red=0.1,
        ),
        graph(
            "CPU",
            "short",
            (f"rate(process_cpu_seconds_total{{{AT}}}{EVERY})", "{{job}} {{instance}}"),
            about="Cores in use.",
        ),
        graph(
            "Memory",
            "bytes",
            (f"process_resident_memory_bytes{{{AT}}}", "{{job}} {{instance}}"),
            about="Resident.",
        ),
        graph(
            "File descriptors",
            "percentunit",
            (f"process_open_fds{{{AT}}} / process_max_fds{{{AT}}}", "{{job}} {{instance}}"),
            about="Open over allowed; each connection takes one.",
            amber=0.5,
            red=0.8,
        ),
        graph(
            "Garbage collections",
            "short",
            (f"rate(python_gc_collections_total{{{AT}}}{EVERY})", "{{job}} {{instance}} generation {{generation}}"),
            about="A second. Those of generation 2 stop the event loop longest.",
        ),
        graph(
            "Up since",
            "s",
            (f"time() - process_start_time_seconds{{{AT}}}", "{{job}} {{instance}}"),
            about="A fall is a restart.",
        ),
        graph(
            "GPU memory",
            "bytes",
            (f"rewardloop_gpu_memory_used_bytes{{{AT}}}", "{{instance}} GPU {{gpu}} used"),
            (f"rewardloop_gpu_memory_total_bytes{{{AT}}}", "{{instance}} GPU {{gpu}} total"),
            about="Nothing where there is no GPU, or no nvidia-ml-py.",
        ),
        graph(
            "GPU utilisation",
            "percentunit",
            (f"rewardloop_gpu_utilisation_ratio{{{AT}}}", "{{instance}} GPU {{gpu}}"),
            about="Share of the time in which a kernel ran.",
            highest=1,
        ),
        graph(
            "Build",
            "short",
            (
                f"count by (job, version, python) (rewardloop_build_info{{{AT}}})",
                "{{job}} {{version}} Python {{python}}",
            ),
            about="Processes of each version.",
        ),
    ]
