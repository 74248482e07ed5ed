"""Samples many requests at once from a causal language model, without a server or a tokenizer.

Each candidate draws uniform numbers from its own seed, and maps them to tokens by the inverse of its distribution's
CDF. So its text does not depend on what it is batched with, and requests may join a batch that runs. The candidates of
one prompt share one prefill.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rewardloop_sampling.decoding import Decoding
from rewardloop_sampling.drawing import RowSettings, next_tokens, uniform_draws
from rewardloop_sampling.generation_rules import GenerationRules, ProcessedRows
from rewardloop_sampling.sampling import Candidate, Sampled, SampleRequest, Task

# Ended rows are removed from the batch once they are this share of it, because removing rows copies the cache.
_COMPACT_SHARE = 0.2
_WINDOW = 64  # random numbers of each row on the device


class RunningBatch:
    """Candidates that are sampled together, a token each at a step. Requests join between two steps.

    Args:
        model: A Hugging Face causal language model in eval mode.
        end_ids: Ids after which sampling of a candidate stops.
        pad_id: The id of the padding token.
        rules: What the checkpoint's generation config does to the logits. Without rules the samples are of the plain
            policy, whose probabilities the losses of the trainer assume.
    """

    def __init__(
        self, model: Any, *, end_ids: Collection[int], pad_id: int, rules: GenerationRules | None = None
    ) -> None:
        self._model = model
        self._end_ids = frozenset(end_ids)
        self._pad_id = pad_id
        self._rules = rules
        self._tasks: list[Task] = []
        self._joining: list[_Prefilled] = []
        self._rows: list[Candidate] = []  # as they are in the cache; some may have ended
        self._ids: Tensor  # the last token of each row, (rows,)
        self._forward: Decoding
        self._processed: ProcessedRows | None = None
        self._settings: RowSettings
        self._uniform: Tensor  # (rows, _WINDOW)
        self._column = 0  # of _uniform

    @property
    def tasks(self) -> Sequence[Task]:
        """The requests that are not done."""
        return self._tasks

    @property
    def rows(self) -> int:
        """Candidates that the next step gives a token."""
        return sum(row.is_running for task in self._tasks for row in task.candidates)

    @property
    def can_join(self) -> bool:
        """Whether requests may join now. With recurrent layers they may only if none is in the batch."""
        return all(forward.can_join for forward in self._forwards())

    @torch.inference_mode()
    def join(self, tasks: Sequence[Task]) -> None:
        """Read the prompts of new requests. Their candidates get their first token at the next step.

        If it raises, those that run are as they were.

        Raises:
            ValueError: A request has an empty prompt, no candidate or no new token.
            RuntimeError: Nothing can join now.
        """
        for request in (task.request for task in tasks):
            if not request.prompt or request.candidates < 1 or request.max_new_tokens < 1:
                raise ValueError("a request needs a prompt, a candidate and room for a token")
        if not tasks:
            return
        if not self.can_join:
            raise RuntimeError("requests to this model begin together")
        forward = Decoding(self._model, [task.request.prompt for task in tasks], self._pad_id)
        logits = forward.prefill([i for i, task in enumerate(tasks) for _ in range(task.request.candidates)])
        rows = []
        for task in tasks:
            request = task.request
            task.candidates = [
                Candidate(task, i, uniform_draws(request.seed, i, request.max_new_tokens + _WINDOW))
                for i in range(request.candidates)
            ]
            rows += task.candidates
        self._tasks += tasks
        self._joining.append(_Prefilled(forward, logits, rows))

    @torch.inference_mode()
    def step(self) -> list[Task]:
        """Give each candidate its next token. Returns the requests that are done, which have left the batch.

        A request that has an error or is abandoned is done, too. If it raises, the batch is of no further use.
        """
        if not self._tasks:
            return []
        is_changed = self._leave() or bool(self._joining)
        logits = [self._forward.step(self._ids)] if self._rows else []
        for prefilled in self._joining:
            logits.append(prefilled.logits)
            self._merge(prefilled)
        self._joining = []
        if is_changed or self._column == _WINDOW:
            self._arrange()
        self._draw(logits[0] if len(logits) == 1 else torch.cat(logits))
        for task in self._tasks:
            if task.is_abandoned():
                task.end()
        done = [task for task in self._tasks if task.is_done]
        if done:
            self._tasks = [task for task in self._tasks if not task.is_done]
        return done

    def finish(self) -> None:
        """Sample until all are done. Raises FloatingPointError if the model gave logits that are NaN."""
        while self._tasks:
            for task in self.step():
                if task.error is not None:
                    raise task.error

    def _forwards(self) -> Iterator[Decoding]:
        if any(row.is_running for row in self._rows):
            yield self._forward
        yield from (prefilled.forward for prefilled in self._joining)

    def _leave(self) -> bool:
        """Drop the rows that have ended if they are many, if others join, or if there is no room to carry them along.

        Otherwise they stay, because dropping rows copies the cache. Returns whether rows were dropped.
        """
        kept = [place for place, row in enumerate(self._rows) if row.is_running]
        ended = len(self._rows) - len(kept)
        if not ended:
            return False
        if not (self._joining or self._forward.is_full or ended >= _COMPACT_SHARE * len(self._rows)):
            return False
        self._rows = [self._rows[place] for place in kept]
        if kept:
            self._ids = self._ids[self._forward.keep(kept)]
            if self._processed is not None:
                self._processed.keep(kept)
        return True

    def _merge(self, prefilled: _Prefilled) -> None:
        """Append the rows of prompts that were read."""
        forward, rows = prefilled.forward, prefilled.rows
        prompts = [row.task.request.prompt for row in rows]
        processed = None if self._rules is None else ProcessedRows(self._rules, prompts, self._model.device)
        if not self._rows:
            self._forward, self._processed = forward, processed
        else:
            self._forward.join(forward)
            if self._processed is not None and processed is not None:
                self._processed.join(processed)
        self._rows = [*self._rows, *rows]

    def _arrange(self) -> None:
        """Put the rows' settings and next random numbers on the device."""
        requests, device = [row.task.request for row in self._rows], self._model.device
        self._settings = RowSettings.of(
            [each.temperature for each in requests], [each.top_p for each in requests], device
        )
        self._uniform = torch.stack([row.draws[len(row.ids) :][:_WINDOW] for row in self._rows]).to(device)
        self._column = 0

    def _draw(self, logits: Tensor) -> None:
        """Choose each row's next token from logits (rows, vocabulary)."""
        if self._processed is not None:
            logits = self._processed.scores(logits)
        self._ids, logprobs = next_tokens(logits, self._settings, self._uniform[:, self._column], self._rules)
        self._column += 1
        if self._processed is not None:
            self._processed.append(self._ids)
        # The step waits for the device here, and nowhere else. Ids are exact in float64.
        tokens, chances = torch.stack((self._ids.double(), logprobs)).tolist()
        for row, token, logprob in zip(self._rows, map(int, tokens), chances, strict=True):
            if row.is_running:
                self._append(row, token, logprob)

    def _append(self, row: Candidate, token: int, logprob: float) -> None:
        task = row.task
        if math.isnan(logprob):
            task.error = FloatingPointError("the model's logits are not numbers")
            task.end()
            return
        row.ids.append(token)
        row.logprobs.append(logprob)
        if token in self._end_ids:
            row.finish = "stop"
            row.is_running = False
            return
        is_over = task.is_said is not None and task.is_said(row.index, row.ids)
        row.is_running = not is_over and len(row.ids) < task.request.max_new_tokens


@dataclass(frozen=True, slots=True)
class _Prefilled:
    """Prompts that were read. ``logits``: of the first token of each row, (rows, vocabulary)."""

    forward: Decoding
    logits: Tensor
    rows: list[Candidate]


def sample(
    model: Any,
    requests: Sequence[SampleRequest],
    *,
    end_ids: Collection[int],
    pad_id: int,
    rules: GenerationRules | None = None,
    is_abandoned: Callable[[int], bool] = lambda request: False,
) -> list[list[Sampled]]:
    """Return the candidates of each request, in order.

    Args:
        model: As for `RunningBatch`, like the next ones.
        requests: What to sample, all in one batch.
        end_ids: Ids after which sampling of a candidate stops.
        pad_id: The id of the padding token.
        rules: What the checkpoint's generation config does to the logits.
        is_abandoned: As in `Task`, with a request's index.

    Raises:
        ValueError: A request has an empty prompt, no candidate or no new token.
        FloatingPointError: The model gave logits that are NaN.
    """
    tasks = [Task(request, partial(is_abandoned, i)) for i, request in enumerate(requests)]
    batch = RunningBatch(model, end_ids=end_ids, pad_id=pad_id, rules=rules)
    batch.join(tasks)
    batch.finish()
    return [task.sampled for task in tasks]
