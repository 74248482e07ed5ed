import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from rewardloop.v1 import common_pb2 as _common_pb2
from rewardloop.v1 import feedback_pb2 as _feedback_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AnswerKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ANSWER_KIND_UNSPECIFIED: _ClassVar[AnswerKind]
    ANSWER_KIND_CHOICE: _ClassVar[AnswerKind]
    ANSWER_KIND_RANKING: _ClassVar[AnswerKind]
    ANSWER_KIND_RATING: _ClassVar[AnswerKind]
    ANSWER_KIND_EDIT: _ClassVar[AnswerKind]

class NoTask(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NO_TASK_UNSPECIFIED: _ClassVar[NoTask]
    NO_TASK_ALL_DONE: _ClassVar[NoTask]
    NO_TASK_ALL_TAKEN: _ClassVar[NoTask]
ANSWER_KIND_UNSPECIFIED: AnswerKind
ANSWER_KIND_CHOICE: AnswerKind
ANSWER_KIND_RANKING: AnswerKind
ANSWER_KIND_RATING: AnswerKind
ANSWER_KIND_EDIT: AnswerKind
NO_TASK_UNSPECIFIED: NoTask
NO_TASK_ALL_DONE: NoTask
NO_TASK_ALL_TAKEN: NoTask

class RatingScale(_message.Message):
    __slots__ = ("minimum", "maximum")
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    minimum: float
    maximum: float
    def __init__(self, minimum: _Optional[float] = ..., maximum: _Optional[float] = ...) -> None: ...

class TaskCandidate(_message.Message):
    __slots__ = ("text", "version")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    text: str
    version: str
    def __init__(self, text: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class NewTask(_message.Message):
    __slots__ = ("generation_id", "prompt", "candidates", "kinds", "rating_scale", "aspect", "tags", "overlap")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    RATING_SCALE_FIELD_NUMBER: _ClassVar[int]
    ASPECT_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    prompt: _common_pb2.Prompt
    candidates: _containers.RepeatedCompositeFieldContainer[TaskCandidate]
    kinds: _containers.RepeatedScalarFieldContainer[AnswerKind]
    rating_scale: RatingScale
    aspect: str
    tags: _containers.ScalarMap[str, str]
    overlap: int
    def __init__(self, generation_id: _Optional[str] = ..., prompt: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., candidates: _Optional[_Iterable[_Union[TaskCandidate, _Mapping]]] = ..., kinds: _Optional[_Iterable[_Union[AnswerKind, str]]] = ..., rating_scale: _Optional[_Union[RatingScale, _Mapping]] = ..., aspect: _Optional[str] = ..., tags: _Optional[_Mapping[str, str]] = ..., overlap: _Optional[int] = ...) -> None: ...

class AddTasksRequest(_message.Message):
    __slots__ = ("project", "import_id", "tasks", "shared_share", "shared_overlap")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    IMPORT_ID_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    SHARED_SHARE_FIELD_NUMBER: _ClassVar[int]
    SHARED_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    project: str
    import_id: str
    tasks: _containers.RepeatedCompositeFieldContainer[NewTask]
    shared_share: float
    shared_overlap: int
    def __init__(self, project: _Optional[str] = ..., import_id: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[NewTask, _Mapping]]] = ..., shared_share: _Optional[float] = ..., shared_overlap: _Optional[int] = ...) -> None: ...

class AddTasksResponse(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[AddTasksItem]
    def __init__(self, items: _Optional[_Iterable[_Union[AddTasksItem, _Mapping]]] = ...) -> None: ...

class AddTasksItem(_message.Message):
    __slots__ = ("result", "error")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    result: AddedTask
    error: _status_pb2.Status
    def __init__(self, result: _Optional[_Union[AddedTask, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class AddedTask(_message.Message):
    __slots__ = ("task_id", "duplicate")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    duplicate: bool
    def __init__(self, task_id: _Optional[str] = ..., duplicate: _Optional[bool] = ...) -> None: ...

class RetractTasksRequest(_message.Message):
    __slots__ = ("project", "import_id", "answers")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    IMPORT_ID_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    project: str
    import_id: str
    answers: bool
    def __init__(self, project: _Optional[str] = ..., import_id: _Optional[str] = ..., answers: _Optional[bool] = ...) -> None: ...

class RetractTasksResponse(_message.Message):
    __slots__ = ("tasks", "answers")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    tasks: int
    answers: int
    def __init__(self, tasks: _Optional[int] = ..., answers: _Optional[int] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("lease_id", "task_id", "project", "prompt", "candidates", "kinds", "rating_scale", "aspect", "tags", "expire_time", "guideline_version")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    RATING_SCALE_FIELD_NUMBER: _ClassVar[int]
    ASPECT_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    GUIDELINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    task_id: str
    project: str
    prompt: _common_pb2.Prompt
    candidates: _containers.RepeatedScalarFieldContainer[str]
    kinds: _containers.RepeatedScalarFieldContainer[AnswerKind]
    rating_scale: RatingScale
    aspect: str
    tags: _containers.ScalarMap[str, str]
    expire_time: _timestamp_pb2.Timestamp
    guideline_version: str
    def __init__(self, lease_id: _Optional[str] = ..., task_id: _Optional[str] = ..., project: _Optional[str] = ..., prompt: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., candidates: _Optional[_Iterable[str]] = ..., kinds: _Optional[_Iterable[_Union[AnswerKind, str]]] = ..., rating_scale: _Optional[_Union[RatingScale, _Mapping]] = ..., aspect: _Optional[str] = ..., tags: _Optional[_Mapping[str, str]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., guideline_version: _Optional[str] = ...) -> None: ...

class NextTaskRequest(_message.Message):
    __slots__ = ("project", "labeller")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    LABELLER_FIELD_NUMBER: _ClassVar[int]
    project: str
    labeller: str
    def __init__(self, project: _Optional[str] = ..., labeller: _Optional[str] = ...) -> None: ...

class NextTaskResponse(_message.Message):
    __slots__ = ("task", "no_task", "answered", "left", "own_left", "taken")
    TASK_FIELD_NUMBER: _ClassVar[int]
    NO_TASK_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    OWN_LEFT_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    task: Task
    no_task: NoTask
    answered: int
    left: int
    own_left: int
    taken: int
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., no_task: _Optional[_Union[NoTask, str]] = ..., answered: _Optional[int] = ..., left: _Optional[int] = ..., own_left: _Optional[int] = ..., taken: _Optional[int] = ...) -> None: ...

class Ratings(_message.Message):
    __slots__ = ("ratings",)
    RATINGS_FIELD_NUMBER: _ClassVar[int]
    ratings: _containers.RepeatedCompositeFieldContainer[_feedback_pb2.Rating]
    def __init__(self, ratings: _Optional[_Iterable[_Union[_feedback_pb2.Rating, _Mapping]]] = ...) -> None: ...

class Skip(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("choice", "tie", "ranking", "ratings", "edit", "skip")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    TIE_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    RATINGS_FIELD_NUMBER: _ClassVar[int]
    EDIT_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    choice: _feedback_pb2.Choice
    tie: _feedback_pb2.Tie
    ranking: _feedback_pb2.Ranking
    ratings: Ratings
    edit: _feedback_pb2.Edit
    skip: Skip
    def __init__(self, choice: _Optional[_Union[_feedback_pb2.Choice, _Mapping]] = ..., tie: _Optional[_Union[_feedback_pb2.Tie, _Mapping]] = ..., ranking: _Optional[_Union[_feedback_pb2.Ranking, _Mapping]] = ..., ratings: _Optional[_Union[Ratings, _Mapping]] = ..., edit: _Optional[_Union[_feedback_pb2.Edit, _Mapping]] = ..., skip: _Optional[_Union[Skip, _Mapping]] = ...) -> None: ...

class AnswerRequest(_message.Message):
    __slots__ = ("project", "labeller", "lease_id", "verdict", "seconds", "guideline_version", "comment", "source")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    LABELLER_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    GUIDELINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    project: str
    labeller: str
    lease_id: str
    verdict: Verdict
    seconds: float
    guideline_version: str
    comment: str
    source: _feedback_pb2.Source
    def __init__(self, project: _Optional[str] = ..., labeller: _Optional[str] = ..., lease_id: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., seconds: _Optional[float] = ..., guideline_version: _Optional[str] = ..., comment: _Optional[str] = ..., source: _Optional[_Union[_feedback_pb2.Source, str]] = ...) -> None: ...

class AnswerResponse(_message.Message):
    __slots__ = ("duplicate", "answered")
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    duplicate: bool
    answered: int
    def __init__(self, duplicate: _Optional[bool] = ..., answered: _Optional[int] = ...) -> None: ...

class UndoRequest(_message.Message):
    __slots__ = ("project", "labeller")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    LABELLER_FIELD_NUMBER: _ClassVar[int]
    project: str
    labeller: str
    def __init__(self, project: _Optional[str] = ..., labeller: _Optional[str] = ...) -> None: ...

class UndoResponse(_message.Message):
    __slots__ = ("task", "verdict", "comment", "answered")
    TASK_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    task: Task
    verdict: Verdict
    comment: str
    answered: int
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., comment: _Optional[str] = ..., answered: _Optional[int] = ...) -> None: ...

class GetProgressRequest(_message.Message):
    __slots__ = ("project", "labeller")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    LABELLER_FIELD_NUMBER: _ClassVar[int]
    project: str
    labeller: str
    def __init__(self, project: _Optional[str] = ..., labeller: _Optional[str] = ...) -> None: ...

class GetProgressResponse(_message.Message):
    __slots__ = ("projects",)
    PROJECTS_FIELD_NUMBER: _ClassVar[int]
    projects: _containers.RepeatedCompositeFieldContainer[Progress]
    def __init__(self, projects: _Optional[_Iterable[_Union[Progress, _Mapping]]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("project", "tasks", "done", "open", "given_up", "leases", "answers", "answers_by_kind", "skips", "unscored", "agreement", "self_agreement", "labellers", "guideline_version")
    class AnswersByKindEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class SkipsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    GIVEN_UP_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_BY_KIND_FIELD_NUMBER: _ClassVar[int]
    SKIPS_FIELD_NUMBER: _ClassVar[int]
    UNSCORED_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    SELF_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    LABELLERS_FIELD_NUMBER: _ClassVar[int]
    GUIDELINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    project: str
    tasks: int
    done: int
    open: int
    given_up: int
    leases: int
    answers: int
    answers_by_kind: _containers.ScalarMap[str, int]
    skips: _containers.ScalarMap[str, int]
    unscored: int
    agreement: Agreement
    self_agreement: Agreement
    labellers: _containers.RepeatedCompositeFieldContainer[LabellerProgress]
    guideline_version: str
    def __init__(self, project: _Optional[str] = ..., tasks: _Optional[int] = ..., done: _Optional[int] = ..., open: _Optional[int] = ..., given_up: _Optional[int] = ..., leases: _Optional[int] = ..., answers: _Optional[int] = ..., answers_by_kind: _Optional[_Mapping[str, int]] = ..., skips: _Optional[_Mapping[str, int]] = ..., unscored: _Optional[int] = ..., agreement: _Optional[_Union[Agreement, _Mapping]] = ..., self_agreement: _Optional[_Union[Agreement, _Mapping]] = ..., labellers: _Optional[_Iterable[_Union[LabellerProgress, _Mapping]]] = ..., guideline_version: _Optional[str] = ...) -> None: ...

class Agreement(_message.Message):
    __slots__ = ("compared", "agreed")
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    AGREED_FIELD_NUMBER: _ClassVar[int]
    compared: int
    agreed: int
    def __init__(self, compared: _Optional[int] = ..., agreed: _Optional[int] = ...) -> None: ...

class LabellerProgress(_message.Message):
    __slots__ = ("labeller", "caller", "answers", "skips", "repeats", "seconds", "agreement", "last_time", "left")
    LABELLER_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    SKIPS_FIELD_NUMBER: _ClassVar[int]
    REPEATS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    LAST_TIME_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    labeller: str
    caller: str
    answers: int
    skips: int
    repeats: int
    seconds: float
    agreement: Agreement
    last_time: _timestamp_pb2.Timestamp
    left: int
    def __init__(self, labeller: _Optional[str] = ..., caller: _Optional[str] = ..., answers: _Optional[int] = ..., skips: _Optional[int] = ..., repeats: _Optional[int] = ..., seconds: _Optional[float] = ..., agreement: _Optional[_Union[Agreement, _Mapping]] = ..., last_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., left: _Optional[int] = ...) -> None: ...

class ListAnswersRequest(_message.Message):
    __slots__ = ("project", "page_size", "page_token")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    project: str
    page_size: int
    page_token: str
    def __init__(self, project: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAnswersResponse(_message.Message):
    __slots__ = ("answers", "next_page_token")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[GivenAnswer]
    next_page_token: str
    def __init__(self, answers: _Optional[_Iterable[_Union[GivenAnswer, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GivenAnswer(_message.Message):
    __slots__ = ("lease_id", "task_id", "prompt", "candidates", "display_order", "verdict", "labeller", "caller", "source", "answer_time", "seconds", "guideline_version", "comment", "aspect", "tags", "is_repeat", "draw", "generation_id")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_ORDER_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    LABELLER_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TIME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    GUIDELINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    ASPECT_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    IS_REPEAT_FIELD_NUMBER: _ClassVar[int]
    DRAW_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    task_id: str
    prompt: _common_pb2.Prompt
    candidates: _containers.RepeatedCompositeFieldContainer[TaskCandidate]
    display_order: _containers.RepeatedScalarFieldContainer[int]
    verdict: Verdict
    labeller: str
    caller: str
    source: _feedback_pb2.Source
    answer_time: _timestamp_pb2.Timestamp
    seconds: float
    guideline_version: str
    comment: str
    aspect: str
    tags: _containers.ScalarMap[str, str]
    is_repeat: bool
    draw: _feedback_pb2.TaskDraw
    generation_id: str
    def __init__(self, lease_id: _Optional[str] = ..., task_id: _Optional[str] = ..., prompt: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., candidates: _Optional[_Iterable[_Union[TaskCandidate, _Mapping]]] = ..., display_order: _Optional[_Iterable[int]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., labeller: _Optional[str] = ..., caller: _Optional[str] = ..., source: _Optional[_Union[_feedback_pb2.Source, str]] = ..., answer_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., seconds: _Optional[float] = ..., guideline_version: _Optional[str] = ..., comment: _Optional[str] = ..., aspect: _Optional[str] = ..., tags: _Optional[_Mapping[str, str]] = ..., is_repeat: _Optional[bool] = ..., draw: _Optional[_Union[_feedback_pb2.TaskDraw, _Mapping]] = ..., generation_id: _Optional[str] = ...) -> None: ...

class SetGuidelinesRequest(_message.Message):
    __slots__ = ("project", "text")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    project: str
    text: str
    def __init__(self, project: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class SetGuidelinesResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: str
    def __init__(self, version: _Optional[str] = ...) -> None: ...

class GetGuidelinesRequest(_message.Message):
    __slots__ = ("project", "version")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    project: str
    version: str
    def __init__(self, project: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class GetGuidelinesResponse(_message.Message):
    __slots__ = ("text", "version")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    text: str
    version: str
    def __init__(self, text: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...
