import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TrainingStatus(_message.Message):
    __slots__ = ("model", "phase", "new_signals", "least_signals", "longest_interval_s", "last_round_end_time", "unread_signals", "gate_needs_prompts", "pause_reason", "pause_end_time")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    NEW_SIGNALS_FIELD_NUMBER: _ClassVar[int]
    LEAST_SIGNALS_FIELD_NUMBER: _ClassVar[int]
    LONGEST_INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    LAST_ROUND_END_TIME_FIELD_NUMBER: _ClassVar[int]
    UNREAD_SIGNALS_FIELD_NUMBER: _ClassVar[int]
    GATE_NEEDS_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    PAUSE_REASON_FIELD_NUMBER: _ClassVar[int]
    PAUSE_END_TIME_FIELD_NUMBER: _ClassVar[int]
    model: str
    phase: str
    new_signals: int
    least_signals: int
    longest_interval_s: float
    last_round_end_time: _timestamp_pb2.Timestamp
    unread_signals: int
    gate_needs_prompts: int
    pause_reason: str
    pause_end_time: _timestamp_pb2.Timestamp
    def __init__(self, model: _Optional[str] = ..., phase: _Optional[str] = ..., new_signals: _Optional[int] = ..., least_signals: _Optional[int] = ..., longest_interval_s: _Optional[float] = ..., last_round_end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., unread_signals: _Optional[int] = ..., gate_needs_prompts: _Optional[int] = ..., pause_reason: _Optional[str] = ..., pause_end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class TrainerStatus(_message.Message):
    __slots__ = ("trainer_id", "report_time", "ledger_rows", "models")
    TRAINER_ID_FIELD_NUMBER: _ClassVar[int]
    REPORT_TIME_FIELD_NUMBER: _ClassVar[int]
    LEDGER_ROWS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    trainer_id: str
    report_time: _timestamp_pb2.Timestamp
    ledger_rows: int
    models: _containers.RepeatedCompositeFieldContainer[TrainingStatus]
    def __init__(self, trainer_id: _Optional[str] = ..., report_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ledger_rows: _Optional[int] = ..., models: _Optional[_Iterable[_Union[TrainingStatus, _Mapping]]] = ...) -> None: ...

class VersionShare(_message.Message):
    __slots__ = ("version", "share")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    version: str
    share: float
    def __init__(self, version: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("model", "active_version", "previous_versions", "canary", "shadow", "promotions_held", "rejected_versions", "change_time", "change_reason", "signal_to_live_s", "training", "waiting_for")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    PROMOTIONS_HELD_FIELD_NUMBER: _ClassVar[int]
    REJECTED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    CHANGE_TIME_FIELD_NUMBER: _ClassVar[int]
    CHANGE_REASON_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_TO_LIVE_S_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    model: str
    active_version: str
    previous_versions: _containers.RepeatedScalarFieldContainer[str]
    canary: VersionShare
    shadow: VersionShare
    promotions_held: bool
    rejected_versions: _containers.RepeatedScalarFieldContainer[str]
    change_time: _timestamp_pb2.Timestamp
    change_reason: str
    signal_to_live_s: float
    training: TrainingStatus
    waiting_for: str
    def __init__(self, model: _Optional[str] = ..., active_version: _Optional[str] = ..., previous_versions: _Optional[_Iterable[str]] = ..., canary: _Optional[_Union[VersionShare, _Mapping]] = ..., shadow: _Optional[_Union[VersionShare, _Mapping]] = ..., promotions_held: _Optional[bool] = ..., rejected_versions: _Optional[_Iterable[str]] = ..., change_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., change_reason: _Optional[str] = ..., signal_to_live_s: _Optional[float] = ..., training: _Optional[_Union[TrainingStatus, _Mapping]] = ..., waiting_for: _Optional[str] = ...) -> None: ...

class QueueStatus(_message.Message):
    __slots__ = ("stream_length", "pending", "oldest_wait_s", "dead_letters")
    STREAM_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    OLDEST_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    DEAD_LETTERS_FIELD_NUMBER: _ClassVar[int]
    stream_length: int
    pending: int
    oldest_wait_s: float
    dead_letters: int
    def __init__(self, stream_length: _Optional[int] = ..., pending: _Optional[int] = ..., oldest_wait_s: _Optional[float] = ..., dead_letters: _Optional[int] = ...) -> None: ...

class RequestCount(_message.Message):
    __slots__ = ("method", "code", "count")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    method: str
    code: str
    count: int
    def __init__(self, method: _Optional[str] = ..., code: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class TrafficStatus(_message.Message):
    __slots__ = ("start_time", "requests", "score_p50_s", "score_p99_s", "signals")
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    SCORE_P50_S_FIELD_NUMBER: _ClassVar[int]
    SCORE_P99_S_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    start_time: _timestamp_pb2.Timestamp
    requests: _containers.RepeatedCompositeFieldContainer[RequestCount]
    score_p50_s: float
    score_p99_s: float
    signals: int
    def __init__(self, start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., requests: _Optional[_Iterable[_Union[RequestCount, _Mapping]]] = ..., score_p50_s: _Optional[float] = ..., score_p99_s: _Optional[float] = ..., signals: _Optional[int] = ...) -> None: ...

class Alert(_message.Message):
    __slots__ = ("name", "severity", "text")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    severity: str
    text: str
    def __init__(self, name: _Optional[str] = ..., severity: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("time", "models", "trainer", "queue", "traffic", "alerts", "engine")
    TIME_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    ALERTS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    trainer: TrainerStatus
    queue: QueueStatus
    traffic: TrafficStatus
    alerts: _containers.RepeatedCompositeFieldContainer[Alert]
    engine: str
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ..., trainer: _Optional[_Union[TrainerStatus, _Mapping]] = ..., queue: _Optional[_Union[QueueStatus, _Mapping]] = ..., traffic: _Optional[_Union[TrafficStatus, _Mapping]] = ..., alerts: _Optional[_Iterable[_Union[Alert, _Mapping]]] = ..., engine: _Optional[str] = ...) -> None: ...

class RefusalReason(_message.Message):
    __slots__ = ("rule", "text")
    RULE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    rule: str
    text: str
    def __init__(self, rule: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Curve(_message.Message):
    __slots__ = ("name", "steps", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    steps: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., steps: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class ExampleSide(_message.Message):
    __slots__ = ("title", "text", "score")
    TITLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    title: str
    text: str
    score: float
    def __init__(self, title: _Optional[str] = ..., text: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class Example(_message.Message):
    __slots__ = ("prompt", "sides", "note", "caller", "event_id")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SIDES_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    sides: _containers.RepeatedCompositeFieldContainer[ExampleSide]
    note: str
    caller: str
    event_id: str
    def __init__(self, prompt: _Optional[str] = ..., sides: _Optional[_Iterable[_Union[ExampleSide, _Mapping]]] = ..., note: _Optional[str] = ..., caller: _Optional[str] = ..., event_id: _Optional[str] = ...) -> None: ...

class Round(_message.Message):
    __slots__ = ("model", "trainer_id", "number", "phase", "outcome", "start_time", "end_time", "new_signals", "signals", "parent_version", "version", "reasons", "figures", "failures", "error", "step", "steps", "curves", "examples")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TRAINER_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    NEW_SIGNALS_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    PARENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CURVES_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    model: str
    trainer_id: str
    number: int
    phase: str
    outcome: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    new_signals: int
    signals: int
    parent_version: str
    version: str
    reasons: _containers.RepeatedCompositeFieldContainer[RefusalReason]
    figures: _containers.ScalarMap[str, float]
    failures: int
    error: str
    step: int
    steps: int
    curves: _containers.RepeatedCompositeFieldContainer[Curve]
    examples: _containers.RepeatedCompositeFieldContainer[Example]
    def __init__(self, model: _Optional[str] = ..., trainer_id: _Optional[str] = ..., number: _Optional[int] = ..., phase: _Optional[str] = ..., outcome: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., new_signals: _Optional[int] = ..., signals: _Optional[int] = ..., parent_version: _Optional[str] = ..., version: _Optional[str] = ..., reasons: _Optional[_Iterable[_Union[RefusalReason, _Mapping]]] = ..., figures: _Optional[_Mapping[str, float]] = ..., failures: _Optional[int] = ..., error: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., curves: _Optional[_Iterable[_Union[Curve, _Mapping]]] = ..., examples: _Optional[_Iterable[_Union[Example, _Mapping]]] = ...) -> None: ...

class ListRoundsRequest(_message.Message):
    __slots__ = ("model", "page_size")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    model: str
    page_size: int
    def __init__(self, model: _Optional[str] = ..., page_size: _Optional[int] = ...) -> None: ...

class ListRoundsResponse(_message.Message):
    __slots__ = ("rounds",)
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    rounds: _containers.RepeatedCompositeFieldContainer[Round]
    def __init__(self, rounds: _Optional[_Iterable[_Union[Round, _Mapping]]] = ...) -> None: ...

class GetRoundRequest(_message.Message):
    __slots__ = ("model", "trainer_id", "number")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TRAINER_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    model: str
    trainer_id: str
    number: int
    def __init__(self, model: _Optional[str] = ..., trainer_id: _Optional[str] = ..., number: _Optional[int] = ...) -> None: ...

class GetRoundResponse(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: Round
    def __init__(self, round: _Optional[_Union[Round, _Mapping]] = ...) -> None: ...

class PersonFlag(_message.Message):
    __slots__ = ("detector", "text")
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    detector: str
    text: str
    def __init__(self, detector: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Mute(_message.Message):
    __slots__ = ("decided_by", "reason", "decide_time")
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DECIDE_TIME_FIELD_NUMBER: _ClassVar[int]
    decided_by: str
    reason: str
    decide_time: _timestamp_pb2.Timestamp
    def __init__(self, decided_by: _Optional[str] = ..., reason: _Optional[str] = ..., decide_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Person(_message.Message):
    __slots__ = ("caller", "annotator_id", "signals", "votes", "reliability", "reliability_deviation", "agreement", "compared", "pace_s", "flags", "weight", "hand", "mute")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    ANNOTATOR_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    RELIABILITY_FIELD_NUMBER: _ClassVar[int]
    RELIABILITY_DEVIATION_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    PACE_S_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    HAND_FIELD_NUMBER: _ClassVar[int]
    MUTE_FIELD_NUMBER: _ClassVar[int]
    caller: str
    annotator_id: str
    signals: int
    votes: float
    reliability: float
    reliability_deviation: float
    agreement: float
    compared: int
    pace_s: float
    flags: _containers.RepeatedCompositeFieldContainer[PersonFlag]
    weight: float
    hand: str
    mute: Mute
    def __init__(self, caller: _Optional[str] = ..., annotator_id: _Optional[str] = ..., signals: _Optional[int] = ..., votes: _Optional[float] = ..., reliability: _Optional[float] = ..., reliability_deviation: _Optional[float] = ..., agreement: _Optional[float] = ..., compared: _Optional[int] = ..., pace_s: _Optional[float] = ..., flags: _Optional[_Iterable[_Union[PersonFlag, _Mapping]]] = ..., weight: _Optional[float] = ..., hand: _Optional[str] = ..., mute: _Optional[_Union[Mute, _Mapping]] = ...) -> None: ...

class Crowd(_message.Message):
    __slots__ = ("report_time", "people_count", "people", "alpha", "alpha_lower", "alpha_upper", "consistency", "muted_share")
    REPORT_TIME_FIELD_NUMBER: _ClassVar[int]
    PEOPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    PEOPLE_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    ALPHA_LOWER_FIELD_NUMBER: _ClassVar[int]
    ALPHA_UPPER_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    MUTED_SHARE_FIELD_NUMBER: _ClassVar[int]
    report_time: _timestamp_pb2.Timestamp
    people_count: int
    people: _containers.RepeatedCompositeFieldContainer[Person]
    alpha: float
    alpha_lower: float
    alpha_upper: float
    consistency: float
    muted_share: float
    def __init__(self, report_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., people_count: _Optional[int] = ..., people: _Optional[_Iterable[_Union[Person, _Mapping]]] = ..., alpha: _Optional[float] = ..., alpha_lower: _Optional[float] = ..., alpha_upper: _Optional[float] = ..., consistency: _Optional[float] = ..., muted_share: _Optional[float] = ...) -> None: ...

class ListPeopleRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPeopleResponse(_message.Message):
    __slots__ = ("crowd",)
    CROWD_FIELD_NUMBER: _ClassVar[int]
    crowd: Crowd
    def __init__(self, crowd: _Optional[_Union[Crowd, _Mapping]] = ...) -> None: ...

class SetMutedRequest(_message.Message):
    __slots__ = ("caller", "annotator_id", "muted", "reason")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    ANNOTATOR_ID_FIELD_NUMBER: _ClassVar[int]
    MUTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    caller: str
    annotator_id: str
    muted: bool
    reason: str
    def __init__(self, caller: _Optional[str] = ..., annotator_id: _Optional[str] = ..., muted: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class SetMutedResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeadLetter(_message.Message):
    __slots__ = ("letter_id", "time", "reason", "source_id", "size_bytes", "caller", "event_id", "content", "readable")
    LETTER_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    READABLE_FIELD_NUMBER: _ClassVar[int]
    letter_id: str
    time: _timestamp_pb2.Timestamp
    reason: str
    source_id: str
    size_bytes: int
    caller: str
    event_id: str
    content: str
    readable: bool
    def __init__(self, letter_id: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., source_id: _Optional[str] = ..., size_bytes: _Optional[int] = ..., caller: _Optional[str] = ..., event_id: _Optional[str] = ..., content: _Optional[str] = ..., readable: _Optional[bool] = ...) -> None: ...

class ListDeadLettersRequest(_message.Message):
    __slots__ = ("after_letter_id", "page_size")
    AFTER_LETTER_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    after_letter_id: str
    page_size: int
    def __init__(self, after_letter_id: _Optional[str] = ..., page_size: _Optional[int] = ...) -> None: ...

class ListDeadLettersResponse(_message.Message):
    __slots__ = ("letters", "total")
    LETTERS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    letters: _containers.RepeatedCompositeFieldContainer[DeadLetter]
    total: int
    def __init__(self, letters: _Optional[_Iterable[_Union[DeadLetter, _Mapping]]] = ..., total: _Optional[int] = ...) -> None: ...

class RequeueDeadLetterRequest(_message.Message):
    __slots__ = ("letter_id",)
    LETTER_ID_FIELD_NUMBER: _ClassVar[int]
    letter_id: str
    def __init__(self, letter_id: _Optional[str] = ...) -> None: ...

class RequeueDeadLetterResponse(_message.Message):
    __slots__ = ("stream_id",)
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    def __init__(self, stream_id: _Optional[str] = ...) -> None: ...

class DropDeadLetterRequest(_message.Message):
    __slots__ = ("letter_id",)
    LETTER_ID_FIELD_NUMBER: _ClassVar[int]
    letter_id: str
    def __init__(self, letter_id: _Optional[str] = ...) -> None: ...

class DropDeadLetterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Report(_message.Message):
    __slots__ = ("report_id", "kind", "title", "lead", "time", "figures")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    REPORT_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    report_id: str
    kind: str
    title: str
    lead: str
    time: _timestamp_pb2.Timestamp
    figures: _containers.ScalarMap[str, float]
    def __init__(self, report_id: _Optional[str] = ..., kind: _Optional[str] = ..., title: _Optional[str] = ..., lead: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., figures: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ListReportsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListReportsResponse(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[Report]
    def __init__(self, reports: _Optional[_Iterable[_Union[Report, _Mapping]]] = ...) -> None: ...

class GetReportRequest(_message.Message):
    __slots__ = ("report_id",)
    REPORT_ID_FIELD_NUMBER: _ClassVar[int]
    report_id: str
    def __init__(self, report_id: _Optional[str] = ...) -> None: ...

class GetReportResponse(_message.Message):
    __slots__ = ("report", "page")
    REPORT_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    report: Report
    page: str
    def __init__(self, report: _Optional[_Union[Report, _Mapping]] = ..., page: _Optional[str] = ...) -> None: ...
