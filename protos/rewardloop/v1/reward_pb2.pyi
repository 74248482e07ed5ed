from google.rpc import status_pb2 as _status_pb2
from rewardloop.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Truncation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUNCATION_UNSPECIFIED: _ClassVar[Truncation]
    TRUNCATION_ALLOWED: _ClassVar[Truncation]
    TRUNCATION_REFUSED: _ClassVar[Truncation]
TRUNCATION_UNSPECIFIED: Truncation
TRUNCATION_ALLOWED: Truncation
TRUNCATION_REFUSED: Truncation

class ScoreRequest(_message.Message):
    __slots__ = ("prompt", "responses", "lane", "truncation", "pin_version", "min_version", "model", "reference")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    PIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    prompt: _common_pb2.Prompt
    responses: _containers.RepeatedScalarFieldContainer[str]
    lane: _common_pb2.Lane
    truncation: Truncation
    pin_version: str
    min_version: int
    model: str
    reference: str
    def __init__(self, prompt: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., responses: _Optional[_Iterable[str]] = ..., lane: _Optional[_Union[_common_pb2.Lane, str]] = ..., truncation: _Optional[_Union[Truncation, str]] = ..., pin_version: _Optional[str] = ..., min_version: _Optional[int] = ..., model: _Optional[str] = ..., reference: _Optional[str] = ...) -> None: ...

class ResponseScore(_message.Message):
    __slots__ = ("score", "logit", "uncertainty", "token_count", "truncated", "meets_floors")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    LOGIT_FIELD_NUMBER: _ClassVar[int]
    UNCERTAINTY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    MEETS_FLOORS_FIELD_NUMBER: _ClassVar[int]
    score: float
    logit: float
    uncertainty: float
    token_count: int
    truncated: bool
    meets_floors: bool
    def __init__(self, score: _Optional[float] = ..., logit: _Optional[float] = ..., uncertainty: _Optional[float] = ..., token_count: _Optional[int] = ..., truncated: _Optional[bool] = ..., meets_floors: _Optional[bool] = ...) -> None: ...

class ScorePart(_message.Message):
    __slots__ = ("name", "model", "model_version", "values", "uncertainties", "weight", "floor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    UNCERTAINTIES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    model_version: _common_pb2.ModelVersion
    values: _containers.RepeatedScalarFieldContainer[float]
    uncertainties: _containers.RepeatedScalarFieldContainer[float]
    weight: float
    floor: float
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., model_version: _Optional[_Union[_common_pb2.ModelVersion, _Mapping]] = ..., values: _Optional[_Iterable[float]] = ..., uncertainties: _Optional[_Iterable[float]] = ..., weight: _Optional[float] = ..., floor: _Optional[float] = ...) -> None: ...

class ScoreTimings(_message.Message):
    __slots__ = ("queue_us", "tokenize_us", "run_us", "run_rows", "run_tokens")
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    TOKENIZE_US_FIELD_NUMBER: _ClassVar[int]
    RUN_US_FIELD_NUMBER: _ClassVar[int]
    RUN_ROWS_FIELD_NUMBER: _ClassVar[int]
    RUN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    queue_us: int
    tokenize_us: int
    run_us: int
    run_rows: int
    run_tokens: int
    def __init__(self, queue_us: _Optional[int] = ..., tokenize_us: _Optional[int] = ..., run_us: _Optional[int] = ..., run_rows: _Optional[int] = ..., run_tokens: _Optional[int] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("scores", "model_version", "timings", "parts")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedCompositeFieldContainer[ResponseScore]
    model_version: _common_pb2.ModelVersion
    timings: ScoreTimings
    parts: _containers.RepeatedCompositeFieldContainer[ScorePart]
    def __init__(self, scores: _Optional[_Iterable[_Union[ResponseScore, _Mapping]]] = ..., model_version: _Optional[_Union[_common_pb2.ModelVersion, _Mapping]] = ..., timings: _Optional[_Union[ScoreTimings, _Mapping]] = ..., parts: _Optional[_Iterable[_Union[ScorePart, _Mapping]]] = ...) -> None: ...

class ScoreBatchRequest(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[ScoreRequest]
    def __init__(self, groups: _Optional[_Iterable[_Union[ScoreRequest, _Mapping]]] = ...) -> None: ...

class ScoreBatchItem(_message.Message):
    __slots__ = ("result", "error")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    result: ScoreResponse
    error: _status_pb2.Status
    def __init__(self, result: _Optional[_Union[ScoreResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class ScoreBatchResponse(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ScoreBatchItem]
    def __init__(self, items: _Optional[_Iterable[_Union[ScoreBatchItem, _Mapping]]] = ...) -> None: ...

class ScoreStreamRequest(_message.Message):
    __slots__ = ("request_id", "request")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    request: ScoreRequest
    def __init__(self, request_id: _Optional[str] = ..., request: _Optional[_Union[ScoreRequest, _Mapping]] = ...) -> None: ...

class ScoreStreamResponse(_message.Message):
    __slots__ = ("request_id", "result", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    result: ScoreResponse
    error: _status_pb2.Status
    def __init__(self, request_id: _Optional[str] = ..., result: _Optional[_Union[ScoreResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...
