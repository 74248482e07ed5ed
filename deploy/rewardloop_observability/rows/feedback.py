"""The row "Feedback and stream": signals that come in, the stream that they wait in, and who gives them."""

from __future__ import annotations

from rewardloop_observability.panels import Alarm, Panel, graph
from rewardloop_observability.queries import AT, quantiles, rate


def panels() -> list[Panel]:
    return [*_signals(), *_stream(), *_labelling(), *_givers(), *_redis()]


def _signals() -> list[Panel]:
    return [
        graph(
            "Signals by outcome",
            "reqps",
            (rate("rewardloop_feedback_events_total", "outcome"), "{{outcome}}"),
            about="Recorded signals are in the durable stream, spooled ones on the server's disk. Callers send failed"
            " ones again.",
            stacked=True,
        ),
        graph(
            "Signals archived, by kind",
            "reqps",
            (rate("rewardloop_trainer_signals_total", "kind"), "{{kind}}"),
            (rate("rewardloop_trainer_duplicates_total", "job"), "known already"),
            about="Signals that the trainer writes to the ledger in each second.",
        ),
    ]


def _stream() -> list[Panel]:
    return [
        graph(
            "Lag of the stream",
            "s",
            ("max(rewardloop_stream_lag_seconds)", "oldest entry not archived"),
            about="How long the oldest signal has waited to be archived.",
            alarm=Alarm(amber=60, red=300),
        ),
        graph(
            "Entries in the stream",
            "short",
            ("max(rewardloop_stream_length)", "length"),
            ("max(rewardloop_stream_pending)", "read, not acknowledged"),
            about="The trainer removes archived entries every 10 s.",
        ),
        graph(
            "Dead letters",
            "short",
            ("max(rewardloop_dead_letters)", "in the dead-letter stream"),
            (rate("rewardloop_trainer_dead_letters_dropped_total", "job"), "dropped/s"),
            about="Number of entries that the trainer could not read. Beyond the bounds of their stream the oldest are"
            " dropped.",
            alarm=Alarm(red=1),
        ),
        graph(
            "Remembered event ids",
            "short",
            ("max(rewardloop_remembered_ids)", "ids"),
            ("max(rewardloop_remembered_ids_seconds) / 86400", "days back"),
            about="Ids by which a signal that is sent again is recognised, and how many days they reach back. If there"
            " are more than --seen-ids, the oldest are forgotten before --seen-ttl-s is over.",
        ),
        graph(
            "Signal to live model",
            "s",
            *quantiles("rewardloop_feedback_to_live_seconds"),
            about="Time from a signal's arrival to the first reply of a version that learned from it.",
        ),
    ]


def _labelling() -> list[Panel]:
    return [
        graph(
            "Answers of labellers, by kind",
            "reqps",
            (rate("rewardloop_labelling_answers_total", "kind", f'outcome="recorded",{AT}'), "{{kind}}"),
            (
                rate("rewardloop_labelling_answers_total", "outcome", f'outcome!="recorded",{AT}'),
                "not recorded: {{outcome}}",
            ),
            (rate("rewardloop_labelling_undone_total", "job"), "taken back"),
            about="Answers to labelling tasks. Refused ones came after others had the task, or said nothing valid;"
            " failed ones may be recorded, and are sent again.",
        ),
        graph(
            "Open labelling tasks",
            "short",
            ("max(rewardloop_labelling_open_tasks)", "open"),
            about="Tasks of all projects that somebody may get now. At 0 labellers have nothing to do.",
        ),
    ]


def _givers() -> list[Panel]:
    return [
        graph(
            "Signals by source and slice",
            "reqps",
            (rate("rewardloop_trainer_source_signals_total", "source"), "source {{source}}"),
            (f"topk(10, {rate('rewardloop_trainer_slice_signals_total', 'slice')})", "slice {{slice}}"),
            about="Archived signals by source, and by the ten slices with the most of them.",
        ),
        graph(
            "Annotators",
            "short",
            (f"max(rewardloop_trainer_annotators{{{AT}}})", "people"),
            (f"100 * max(rewardloop_trainer_busiest_annotator_ratio{{{AT}}})", "percent from the busiest"),
            about="People who gave signals since the trainer started, and the share of the busiest one. If one person"
            " gives most signals, the model learns that person's taste.",
        ),
        graph(
            "Reliability of people",
            "percentunit",
            (
                f"max by (percent) (rewardloop_trainer_person_accuracy_ratio{{{AT}}})",
                "{{percent}}% of the people below",
            ),
            (f"max by (figure) (rewardloop_trainer_agreement_alpha{{{AT}}})", "alpha, {{figure}}"),
            (f"max(rewardloop_trainer_self_consistency_ratio{{{AT}}})", "same answer when asked again"),
            (f"max(rewardloop_trainer_muted_ratio{{{AT}}})", "signals that weigh nothing"),
            about="How often people are right, as estimated, and how far they agree. Signals of people who are right no"
            " more often than by chance weigh nothing.",
        ),
        graph(
            "Leanings of people",
            "percentunit",
            (f"max(rewardloop_trainer_first_wins_ratio{{{AT}}})", "the response seen first won"),
            (f"max(rewardloop_trainer_longer_wins_ratio{{{AT}}})", "the longer response won"),
            about="Without a leaning to the position, the response that was seen first wins half of the choices.",
        ),
        graph(
            "Flagged people",
            "short",
            (f"max by (detector) (rewardloop_trainer_flagged_people{{{AT}}})", "{{detector}}"),
            (f"max(rewardloop_trainer_shared_hands{{{AT}}})", "hands with several ids"),
            (f"max(rewardloop_trainer_signal_bursts{{{AT}}})", "bursts"),
            about="People whom a detector has flagged. `rewardloop audit` lists them.",
        ),
    ]


def _redis() -> list[Panel]:
    return [
        graph(
            "Redis",
            "short",
            (f"min by (job) (rewardloop_redis_up{{{AT}}})", "{{job}} answers"),
            (rate("rewardloop_trainer_redis_errors_total", "job"), "{{job}} errors/s"),
            about="1 while Redis answers the processes of a job.",
        ),
        graph(
            "What Redis keeps",
            "short",
            (f"max by (durability) (rewardloop_redis_durability{{{AT}}}) == 1", "{{durability}}"),
            (f"min(rewardloop_redis_replicas{{{AT}}})", "replicas"),
            (f"max(rewardloop_redis_replicas_required{{{AT}}})", "replicas required"),
            (rate("rewardloop_redis_unreplicated_total", "written"), "refused for lack of replicas/s, {{written}}"),
            about="How durable Redis is, and whether its replicas have a write before it is acknowledged.",
        ),
        graph(
            "Where the pointer is read",
            "short",
            (f"rewardloop_pointer_source{{{AT}}} == 1", "{{instance}} {{model}} {{source}}"),
            about="A server that starts while Redis is away follows the copy of the pointer in the store.",
        ),
    ]
