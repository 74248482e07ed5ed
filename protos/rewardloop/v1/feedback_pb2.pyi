import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from rewardloop.v1 import common_pb2 as _common_pb2
from rewardloop.v1 import policy_pb2 as _policy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOURCE_UNSPECIFIED: _ClassVar[Source]
    SOURCE_HUMAN: _ClassVar[Source]
    SOURCE_LLM_JUDGE: _ClassVar[Source]
    SOURCE_IMPLICIT: _ClassVar[Source]

class ErasureState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERASURE_STATE_UNSPECIFIED: _ClassVar[ErasureState]
    ERASURE_STATE_PENDING: _ClassVar[ErasureState]
    ERASURE_STATE_DONE: _ClassVar[ErasureState]
    ERASURE_STATE_AWAY: _ClassVar[ErasureState]
SOURCE_UNSPECIFIED: Source
SOURCE_HUMAN: Source
SOURCE_LLM_JUDGE: Source
SOURCE_IMPLICIT: Source
ERASURE_STATE_UNSPECIFIED: ErasureState
ERASURE_STATE_PENDING: ErasureState
ERASURE_STATE_DONE: ErasureState
ERASURE_STATE_AWAY: ErasureState

class Choice(_message.Message):
    __slots__ = ("chosen", "rejected", "strength")
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    chosen: int
    rejected: int
    strength: float
    def __init__(self, chosen: _Optional[int] = ..., rejected: _Optional[int] = ..., strength: _Optional[float] = ...) -> None: ...

class Ranking(_message.Message):
    __slots__ = ("order",)
    ORDER_FIELD_NUMBER: _ClassVar[int]
    order: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, order: _Optional[_Iterable[int]] = ...) -> None: ...

class Thumb(_message.Message):
    __slots__ = ("response", "up")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    response: int
    up: bool
    def __init__(self, response: _Optional[int] = ..., up: _Optional[bool] = ...) -> None: ...

class Rating(_message.Message):
    __slots__ = ("response", "value", "minimum", "maximum")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    response: int
    value: float
    minimum: float
    maximum: float
    def __init__(self, response: _Optional[int] = ..., value: _Optional[float] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ...) -> None: ...

class Edit(_message.Message):
    __slots__ = ("response", "edited_text")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    EDITED_TEXT_FIELD_NUMBER: _ClassVar[int]
    response: int
    edited_text: str
    def __init__(self, response: _Optional[int] = ..., edited_text: _Optional[str] = ...) -> None: ...

class Tie(_message.Message):
    __slots__ = ("first", "second")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    first: int
    second: int
    def __init__(self, first: _Optional[int] = ..., second: _Optional[int] = ...) -> None: ...

class Shown(_message.Message):
    __slots__ = ("chosen", "show_probabilities", "temperature", "top_p", "log_probabilities", "token_counts", "scores")
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    SHOW_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNTS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    chosen: _policy_pb2.Chosen
    show_probabilities: _containers.RepeatedScalarFieldContainer[float]
    temperature: float
    top_p: float
    log_probabilities: _containers.RepeatedScalarFieldContainer[float]
    token_counts: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, chosen: _Optional[_Union[_policy_pb2.Chosen, _Mapping]] = ..., show_probabilities: _Optional[_Iterable[float]] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., log_probabilities: _Optional[_Iterable[float]] = ..., token_counts: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[float]] = ...) -> None: ...

class TaskDraw(_message.Message):
    __slots__ = ("project", "task_id", "probability", "is_uniform", "information", "seconds")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    IS_UNIFORM_FIELD_NUMBER: _ClassVar[int]
    INFORMATION_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    project: str
    task_id: str
    probability: float
    is_uniform: bool
    information: float
    seconds: float
    def __init__(self, project: _Optional[str] = ..., task_id: _Optional[str] = ..., probability: _Optional[float] = ..., is_uniform: _Optional[bool] = ..., information: _Optional[float] = ..., seconds: _Optional[float] = ...) -> None: ...

class FeedbackEvent(_message.Message):
    __slots__ = ("event_id", "generation_id", "prompt", "responses", "choice", "ranking", "thumb", "rating", "edit", "tie", "annotator_id", "source", "tags", "event_time", "arrival_time", "policy_version", "response_versions", "shown", "caller", "display_order", "aspect", "guideline_version", "import_id", "task")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    THUMB_FIELD_NUMBER: _ClassVar[int]
    RATING_FIELD_NUMBER: _ClassVar[int]
    EDIT_FIELD_NUMBER: _ClassVar[int]
    TIE_FIELD_NUMBER: _ClassVar[int]
    ANNOTATOR_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_TIME_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_ORDER_FIELD_NUMBER: _ClassVar[int]
    ASPECT_FIELD_NUMBER: _ClassVar[int]
    GUIDELINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    IMPORT_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    generation_id: str
    prompt: _common_pb2.Prompt
    responses: _containers.RepeatedScalarFieldContainer[str]
    choice: Choice
    ranking: Ranking
    thumb: Thumb
    rating: Rating
    edit: Edit
    tie: Tie
    annotator_id: str
    source: Source
    tags: _containers.ScalarMap[str, str]
    event_time: _timestamp_pb2.Timestamp
    arrival_time: _timestamp_pb2.Timestamp
    policy_version: _common_pb2.ModelVersion
    response_versions: _containers.RepeatedScalarFieldContainer[str]
    shown: Shown
    caller: str
    display_order: _containers.RepeatedScalarFieldContainer[int]
    aspect: str
    guideline_version: str
    import_id: str
    task: TaskDraw
    def __init__(self, event_id: _Optional[str] = ..., generation_id: _Optional[str] = ..., prompt: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., responses: _Optional[_Iterable[str]] = ..., choice: _Optional[_Union[Choice, _Mapping]] = ..., ranking: _Optional[_Union[Ranking, _Mapping]] = ..., thumb: _Optional[_Union[Thumb, _Mapping]] = ..., rating: _Optional[_Union[Rating, _Mapping]] = ..., edit: _Optional[_Union[Edit, _Mapping]] = ..., tie: _Optional[_Union[Tie, _Mapping]] = ..., annotator_id: _Optional[str] = ..., source: _Optional[_Union[Source, str]] = ..., tags: _Optional[_Mapping[str, str]] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., arrival_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., policy_version: _Optional[_Union[_common_pb2.ModelVersion, _Mapping]] = ..., response_versions: _Optional[_Iterable[str]] = ..., shown: _Optional[_Union[Shown, _Mapping]] = ..., caller: _Optional[str] = ..., display_order: _Optional[_Iterable[int]] = ..., aspect: _Optional[str] = ..., guideline_version: _Optional[str] = ..., import_id: _Optional[str] = ..., task: _Optional[_Union[TaskDraw, _Mapping]] = ...) -> None: ...

class RecordRequest(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: FeedbackEvent
    def __init__(self, event: _Optional[_Union[FeedbackEvent, _Mapping]] = ...) -> None: ...

class RecordResponse(_message.Message):
    __slots__ = ("stream_id", "duplicate", "erased")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    ERASED_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    duplicate: bool
    erased: bool
    def __init__(self, stream_id: _Optional[str] = ..., duplicate: _Optional[bool] = ..., erased: _Optional[bool] = ...) -> None: ...

class RecordBatchRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[FeedbackEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[FeedbackEvent, _Mapping]]] = ...) -> None: ...

class RetractRequest(_message.Message):
    __slots__ = ("import_id",)
    IMPORT_ID_FIELD_NUMBER: _ClassVar[int]
    import_id: str
    def __init__(self, import_id: _Optional[str] = ...) -> None: ...

class RetractResponse(_message.Message):
    __slots__ = ("stream_id",)
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    def __init__(self, stream_id: _Optional[str] = ...) -> None: ...

class EraseRequest(_message.Message):
    __slots__ = ("annotator_id", "generation_id", "erasure_id", "caller")
    ANNOTATOR_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    ERASURE_ID_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    annotator_id: str
    generation_id: str
    erasure_id: str
    caller: str
    def __init__(self, annotator_id: _Optional[str] = ..., generation_id: _Optional[str] = ..., erasure_id: _Optional[str] = ..., caller: _Optional[str] = ...) -> None: ...

class ErasureHolder(_message.Message):
    __slots__ = ("name", "state", "erased", "notes")
    class ErasedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERASED_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: ErasureState
    erased: _containers.ScalarMap[str, int]
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[ErasureState, str]] = ..., erased: _Optional[_Mapping[str, int]] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class TaughtVersion(_message.Message):
    __slots__ = ("model", "version", "directly")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIRECTLY_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    directly: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., directly: _Optional[bool] = ...) -> None: ...

class EraseResponse(_message.Message):
    __slots__ = ("erasure_id", "done", "requested_time", "holders", "versions")
    ERASURE_ID_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_TIME_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    erasure_id: str
    done: bool
    requested_time: _timestamp_pb2.Timestamp
    holders: _containers.RepeatedCompositeFieldContainer[ErasureHolder]
    versions: _containers.RepeatedCompositeFieldContainer[TaughtVersion]
    def __init__(self, erasure_id: _Optional[str] = ..., done: _Optional[bool] = ..., requested_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., holders: _Optional[_Iterable[_Union[ErasureHolder, _Mapping]]] = ..., versions: _Optional[_Iterable[_Union[TaughtVersion, _Mapping]]] = ...) -> None: ...

class ListTaughtVersionsRequest(_message.Message):
    __slots__ = ("annotator_id", "generation_id", "caller")
    ANNOTATOR_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    annotator_id: str
    generation_id: str
    caller: str
    def __init__(self, annotator_id: _Optional[str] = ..., generation_id: _Optional[str] = ..., caller: _Optional[str] = ...) -> None: ...

class ListTaughtVersionsResponse(_message.Message):
    __slots__ = ("done", "look_time", "signals", "versions")
    DONE_FIELD_NUMBER: _ClassVar[int]
    LOOK_TIME_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    done: bool
    look_time: _timestamp_pb2.Timestamp
    signals: int
    versions: _containers.RepeatedCompositeFieldContainer[TaughtVersion]
    def __init__(self, done: _Optional[bool] = ..., look_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., signals: _Optional[int] = ..., versions: _Optional[_Iterable[_Union[TaughtVersion, _Mapping]]] = ...) -> None: ...

class RecordBatchItem(_message.Message):
    __slots__ = ("result", "error")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    result: RecordResponse
    error: _status_pb2.Status
    def __init__(self, result: _Optional[_Union[RecordResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class RecordBatchResponse(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[RecordBatchItem]
    def __init__(self, items: _Optional[_Iterable[_Union[RecordBatchItem, _Mapping]]] = ...) -> None: ...
