"""mosec: its Rust front batches calls dynamically, one Python worker runs transformers."""

from __future__ import annotations

from mosec import Runtime, Server, Worker
from scorer import MAX_BATCH, MAX_WAIT_S, Scorer


class Scoring(Worker):
    def __init__(self) -> None:
        self._scorer = Scorer()

    def forward(self, data: list[dict]) -> list[dict]:
        return [{"scores": scores} for scores in self._scorer.score_groups(data)]


if __name__ == "__main__":
    server = Server()
    runtime = Runtime(Scoring, num=1, max_batch_size=MAX_BATCH, max_wait_time=round(1000 * MAX_WAIT_S), timeout=120)
    server.register_runtime({"/score": [runtime]})
    server.run()
