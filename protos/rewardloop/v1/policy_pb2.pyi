import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from rewardloop.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Selection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SELECTION_UNSPECIFIED: _ClassVar[Selection]
    SELECTION_BEST: _ClassVar[Selection]
    SELECTION_INFORMATIVE: _ClassVar[Selection]
    SELECTION_UNIFORM: _ClassVar[Selection]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
SELECTION_UNSPECIFIED: Selection
SELECTION_BEST: Selection
SELECTION_INFORMATIVE: Selection
SELECTION_UNIFORM: Selection
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "candidates", "temperature", "top_p", "seed", "max_new_tokens", "best_of", "selection", "random_share", "reward_model", "stop", "pin_version", "token_log_probabilities")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BEST_OF_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    RANDOM_SHARE_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    PIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOG_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    prompt: _common_pb2.Prompt
    candidates: int
    temperature: float
    top_p: float
    seed: int
    max_new_tokens: int
    best_of: int
    selection: Selection
    random_share: float
    reward_model: str
    stop: _containers.RepeatedScalarFieldContainer[str]
    pin_version: str
    token_log_probabilities: bool
    def __init__(self, prompt: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., candidates: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., best_of: _Optional[int] = ..., selection: _Optional[_Union[Selection, str]] = ..., random_share: _Optional[float] = ..., reward_model: _Optional[str] = ..., stop: _Optional[_Iterable[str]] = ..., pin_version: _Optional[str] = ..., token_log_probabilities: _Optional[bool] = ...) -> None: ...

class Chosen(_message.Message):
    __slots__ = ("selection", "sampled", "random_share", "is_random", "set_probability", "expected_information", "reward_version", "reward_model", "meeting_floors")
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    RANDOM_SHARE_FIELD_NUMBER: _ClassVar[int]
    IS_RANDOM_FIELD_NUMBER: _ClassVar[int]
    SET_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_INFORMATION_FIELD_NUMBER: _ClassVar[int]
    REWARD_VERSION_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    MEETING_FLOORS_FIELD_NUMBER: _ClassVar[int]
    selection: Selection
    sampled: int
    random_share: float
    is_random: bool
    set_probability: float
    expected_information: float
    reward_version: _common_pb2.ModelVersion
    reward_model: str
    meeting_floors: int
    def __init__(self, selection: _Optional[_Union[Selection, str]] = ..., sampled: _Optional[int] = ..., random_share: _Optional[float] = ..., is_random: _Optional[bool] = ..., set_probability: _Optional[float] = ..., expected_information: _Optional[float] = ..., reward_version: _Optional[_Union[_common_pb2.ModelVersion, _Mapping]] = ..., reward_model: _Optional[str] = ..., meeting_floors: _Optional[int] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("text", "log_probability", "token_count", "finish_reason", "policy_version", "score", "uncertainty", "parts", "tokens")
    class PartsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    UNCERTAINTY_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    text: str
    log_probability: float
    token_count: int
    finish_reason: FinishReason
    policy_version: _common_pb2.ModelVersion
    score: float
    uncertainty: float
    parts: _containers.ScalarMap[str, float]
    tokens: _containers.RepeatedCompositeFieldContainer[TokenLogProbability]
    def __init__(self, text: _Optional[str] = ..., log_probability: _Optional[float] = ..., token_count: _Optional[int] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., policy_version: _Optional[_Union[_common_pb2.ModelVersion, _Mapping]] = ..., score: _Optional[float] = ..., uncertainty: _Optional[float] = ..., parts: _Optional[_Mapping[str, float]] = ..., tokens: _Optional[_Iterable[_Union[TokenLogProbability, _Mapping]]] = ...) -> None: ...

class TokenLogProbability(_message.Message):
    __slots__ = ("text", "log_probability")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    text: str
    log_probability: float
    def __init__(self, text: _Optional[str] = ..., log_probability: _Optional[float] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("generation_id", "candidates", "policy_version", "chosen", "truncated", "prompt_token_count")
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    policy_version: _common_pb2.ModelVersion
    chosen: Chosen
    truncated: TruncatedPrompt
    prompt_token_count: int
    def __init__(self, generation_id: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., policy_version: _Optional[_Union[_common_pb2.ModelVersion, _Mapping]] = ..., chosen: _Optional[_Union[Chosen, _Mapping]] = ..., truncated: _Optional[_Union[TruncatedPrompt, _Mapping]] = ..., prompt_token_count: _Optional[int] = ...) -> None: ...

class GenerateStreamRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: GenerateRequest
    def __init__(self, request: _Optional[_Union[GenerateRequest, _Mapping]] = ...) -> None: ...

class GenerateStreamResponse(_message.Message):
    __slots__ = ("generation_id", "text", "end")
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    text: CandidateText
    end: GenerateResponse
    def __init__(self, generation_id: _Optional[str] = ..., text: _Optional[_Union[CandidateText, _Mapping]] = ..., end: _Optional[_Union[GenerateResponse, _Mapping]] = ...) -> None: ...

class CandidateText(_message.Message):
    __slots__ = ("candidate", "text")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    candidate: int
    text: str
    def __init__(self, candidate: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class TruncatedPrompt(_message.Message):
    __slots__ = ("dropped_turns", "is_cut")
    DROPPED_TURNS_FIELD_NUMBER: _ClassVar[int]
    IS_CUT_FIELD_NUMBER: _ClassVar[int]
    dropped_turns: int
    is_cut: bool
    def __init__(self, dropped_turns: _Optional[int] = ..., is_cut: _Optional[bool] = ...) -> None: ...

class Generation(_message.Message):
    __slots__ = ("generation_id", "prompt", "candidates", "policy_version", "temperature", "top_p", "seed", "max_new_tokens", "show_probabilities", "create_time", "chosen")
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SHOW_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    prompt: _common_pb2.Prompt
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    policy_version: _common_pb2.ModelVersion
    temperature: float
    top_p: float
    seed: int
    max_new_tokens: int
    show_probabilities: _containers.RepeatedScalarFieldContainer[float]
    create_time: _timestamp_pb2.Timestamp
    chosen: Chosen
    def __init__(self, generation_id: _Optional[str] = ..., prompt: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., policy_version: _Optional[_Union[_common_pb2.ModelVersion, _Mapping]] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., show_probabilities: _Optional[_Iterable[float]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., chosen: _Optional[_Union[Chosen, _Mapping]] = ...) -> None: ...
