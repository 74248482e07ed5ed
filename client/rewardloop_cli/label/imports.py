"""The command `label import`: looks at files, and adds their rows as tasks.

A task that a project has already counts once, so that rows may be sent twice. The answers to prompts alone are sampled
when their row is sent, so that a row that was settled is not sent again.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

from rewardloop.v1 import labelling_pb2
from rewardloop_cli.connect import open_client
from rewardloop_cli.failures import UsageError
from rewardloop_cli.feedback.imports import import_id_of
from rewardloop_cli.feedback.sending import BATCH_EVENTS, Delivery, GaveUp, one_line, send_file
from rewardloop_cli.feedback.summary import counted, prompt_text, short_text
from rewardloop_client import AddedTask, NewTask, RewardloopClient, RewardloopError
from rewardloop_client.labelling.messages import new_task
from rewardloop_client.labelling.types import AnswerKindName
from rewardloop_data.judgements import prompt_message
from rewardloop_data.questions import Question, QuestionReading, recognise_questions
from rewardloop_data.rows import Json, RowError
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.side_files import Progress, SideFiles, writable_folder
from rewardloop_data.source_file import SourceFile, UnreadableFile, opened

_KINDS: tuple[AnswerKindName, ...] = ("choice", "ranking", "rating", "edit")
_SHOWN_REJECTIONS = 10
_PROMPTS_AT_ONCE = 4  # each of which the policy answers before the batch is settled
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """The settings that all tasks of an import share.

    Attributes:
        project: The project that gets the tasks.
        kinds: The kinds of answer that a task takes; if empty, the number of responses decides.
        scale: Lowest and highest grade; None for 1 to 5.
        overlap: How many labellers answer a task.
        shared: Share of the tasks that more labellers answer, and how many labellers those tasks have.
        candidates: How many answers the policy gives to a prompt without responses.
        temperature: The temperature of these answers; None for 1.
        aspect: The aspect of a task whose row names none.
        tags: Labels of every task.
    """

    project: str
    kinds: tuple[AnswerKindName, ...] = ()
    scale: tuple[float, float] | None = None
    overlap: int = 1
    shared: tuple[float, int] = (0.0, 0)
    candidates: int = 2
    temperature: float | None = None
    aspect: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def task_of(self, question: Question) -> NewTask:
        """Return the task of a question. A question without responses makes one without candidates. Raises RowError."""
        return NewTask(
            kinds=self.kinds_of(question),
            prompt=prompt_message(question.prompt),
            candidates=question.responses,
            scale=self.scale,
            aspect=question.aspect or self.aspect,
            tags=self.tags,
            overlap=self.overlap,
        )

    def kinds_of(self, question: Question) -> tuple[AnswerKindName, ...]:
        """Return the kinds of answer that the task of a question takes."""
        count = len(question.responses) or self.candidates
        by_count: AnswerKindName = "rating" if count == 1 else "choice" if count == 2 else "ranking"
        return self.kinds or (by_count,)


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """How the rows of a file become tasks."""

    reading: QuestionReading
    wanted: Wanted
    most_items: int = BATCH_EVENTS
    reads_settled_rows: bool = False

    def reader(self) -> Callable[[Json], list[labelling_pb2.NewTask]]:
        """Return the function that turns a row into its tasks."""
        return lambda row: [_message(self.wanted.task_of(each)) for each in self.reading.questions(row)]


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """The settings of one run of the command; see `feedback.imports.ImportOptions`."""

    server: str
    wanted: Wanted
    choices: Choices = field(default_factory=Choices)
    patience_s: float = 120.0
    side_dir: Path | None = None
    restart: bool = False
    dry_run: bool = False
    as_json: bool = False


def parse_kinds(names: Sequence[str]) -> tuple[AnswerKindName, ...]:
    """Return the kinds of these names. Raises UsageError."""
    if wrong := [name for name in names if name not in _KINDS]:
        raise UsageError(f"--kind {wrong[0]}: is not one of {', '.join(_KINDS)}")
    return tuple(cast(AnswerKindName, name) for name in dict.fromkeys(names))


def parse_shared(share: float, overlap: int) -> tuple[float, int]:
    """Return the share of tasks with more labellers, and how many. Raises UsageError."""
    if bool(share) != bool(overlap) or overlap == 1:
        raise UsageError("--shared-share and --shared-overlap go together, and the latter is at least 2")
    return share, overlap


def run(files: Sequence[str], options: ImportOptions) -> int:
    """Import files one after the other. Returns 0, or 1 if rows were rejected, or 2 if a file or the server failed."""
    code = 0
    with ExitStack() as stack:
        client = None if options.dry_run else stack.enter_context(open_client(options.server, timeout_s=120.0))
        for location in files:
            try:
                with opened(location) as source:
                    outcome = _import_one(source, client, options)
            except UnreadableFile as error:
                print(f"rewardloop: {error}", file=sys.stderr)
                outcome = 2
            if outcome is None:
                return 2
            code = max(code, outcome)
    return code


@dataclass(slots=True)
class _Found:
    """Counts and examples of the tasks in a file, made before any is sent."""

    rows: int = 0
    by_count: Counter[int] = field(default_factory=Counter)
    refused: int = 0
    first_reason: str = ""
    examples: list[Question] = field(default_factory=list)

    def summary(self, name: str, wanted: Wanted, import_id: str) -> Iterator[str]:
        kinds = []
        for count, number in sorted(self.by_count.items()):
            asked = counted(count, "response") if count else f"no response ({wanted.candidates} are sampled for each)"
            kinds.append(f"{number} with {asked}")
        yield f"{name}: {counted(self.rows, 'row')}, questions: {', '.join(kinds) or 'none'} (import {import_id})"
        if self.refused:
            hold = "1 row holds" if self.refused == 1 else f"{self.refused} rows hold"
            yield f"{name}: {hold} no question, such as line {self.first_reason}"
        for number, question in enumerate(self.examples, start=1):
            kind = ", ".join(wanted.kinds_of(question))
            yield f"  example {number} ({kind}): {short_text(prompt_text(question.prompt))}"
            for text in question.responses:
                yield f"    response: {short_text(text)}"


def _look(source: SourceFile, reading: QuestionReading) -> _Found:
    """Read all rows. Raises UnreadableFile if none holds a question, or the file is damaged."""
    found = _Found()
    for line in source.lines():
        found.rows += 1
        try:
            questions = reading.questions(line.value())
        except RowError as error:
            found.refused += 1
            found.first_reason = found.first_reason or f"{line.number}: {error}"
            continue
        found.by_count.update(len(each.responses) for each in questions)
        found.examples += questions[: max(0, _EXAMPLES - len(found.examples))]
    if not found.by_count:
        raise UnreadableFile(f"{source.shown}: no row holds a question ({found.first_reason or 'there is none'})")
    return found


def _import_one(source: SourceFile, client: RewardloopClient | None, options: ImportOptions) -> int | None:
    """Import a file, or say how it would be. Returns its exit status, or None if the server failed.

    Raises:
        UnreadableFile: It cannot be read, or it is not clear what its rows ask. Nothing has been sent.
    """
    from rewardloop_cli.feedback.report import Report

    started = time.monotonic()
    wanted = options.wanted
    reading = recognise_questions(source.shown, source.lines(), options.choices)
    found = _look(source, reading)
    import_id = import_id_of(source, options.choices, ["label", json.dumps(asdict(wanted), sort_keys=True)])
    if client is None:
        print("\n".join(found.summary(source.name, wanted, import_id)), flush=True)
        return int(found.refused > 0)
    back = f"label retract --project {wanted.project}"
    with Report(source, shown=_SHOWN_REJECTIONS, item="task", taking_back=back) as report:
        for line in found.summary(source.name, wanted, import_id):
            report.say(line)
        folder = options.side_dir or (Path.cwd() if source.named else writable_folder(source.path.parent)) or Path.cwd()
        try:
            side_files = SideFiles(source, folder)
            fresh = Progress(source.head_sha256, source.size, options.server, import_id)
            progress = side_files.begin(fresh, restart=options.restart)
            if progress.lines_done:
                report.say(f"going on after line {progress.lines_done} (--restart starts over)")
            delivery = Delivery(_Sender(client, wanted, import_id).send, options.patience_s, report.say)
            plan = TaskPlan(reading, wanted, _PROMPTS_AT_ONCE if found.by_count[0] else BATCH_EVENTS)
            progress = send_file(source, delivery, side_files, plan, progress, report.settled)
        except UnreadableFile as error:
            report.fail(str(error))
            return 2
        except (GaveUp, RewardloopError, OSError) as error:
            report.fail(f"{source.shown}: {one_line(error)}; the same command goes on where this one stopped")
            return None
        if options.as_json:
            print(json.dumps({"file": source.shown, "project": wanted.project, **_figures(progress)}), flush=True)
        else:
            report.summary(progress, time.monotonic() - started, side_files.rejected_path)
        return int(progress.rejected > 0)


def _figures(progress: Progress) -> dict[str, object]:
    return {
        "import_id": progress.import_id,
        "rows": progress.rows,
        "tasks": progress.recorded,
        "duplicates": progress.duplicates,
        "rejected": progress.rejected,
    }


class _Sender:
    """Adds tasks, after the policy has answered the prompts that have no responses."""

    def __init__(self, client: RewardloopClient, wanted: Wanted, import_id: str) -> None:
        self._client = client
        self._wanted = wanted
        self._import_id = import_id

    def send(self, tasks: list[labelling_pb2.NewTask]) -> list[AddedTask | RewardloopError]:
        """Return one outcome for each task."""
        ready = [task if task.candidates else self._answered(task) for task in tasks]
        good = [each for each in ready if isinstance(each, labelling_pb2.NewTask)]
        added = iter(
            self._client.labelling.add_messages(
                self._wanted.project, good, import_id=self._import_id, shared=self._wanted.shared
            )
            if good
            else ()
        )
        return [next(added) if isinstance(each, labelling_pb2.NewTask) else each for each in ready]

    def _answered(self, task: labelling_pb2.NewTask) -> labelling_pb2.NewTask | RewardloopError:
        wanted = self._wanted
        try:
            generation = self._client.generate(
                task.prompt, candidates=wanted.candidates, temperature=wanted.temperature
            )
        except RewardloopError as error:
            return error
        made = labelling_pb2.NewTask(generation_id=generation.generation_id)
        made.MergeFrom(task)
        made.ClearField("prompt")
        return made


def _message(task: NewTask) -> labelling_pb2.NewTask:
    try:
        return new_task(task)
    except RewardloopError as error:
        raise RowError(str(error)) from error
