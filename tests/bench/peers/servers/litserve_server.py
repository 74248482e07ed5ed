"""litserve: FastAPI in front, dynamic batches, one worker process that runs transformers."""

from __future__ import annotations

import os

import litserve
from scorer import MAX_BATCH, MAX_WAIT_S, Scorer


class Scoring(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._scorer = Scorer()

    def decode_request(self, request: dict) -> dict:
        return request

    def batch(self, inputs: list[dict]) -> list[dict]:
        return inputs

    def predict(self, x: list[dict]) -> list[list[float]]:
        return self._scorer.score_groups(x)

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        return output

    def encode_response(self, output: list[float]) -> dict:
        return {"scores": output}


if __name__ == "__main__":
    api = Scoring(max_batch_size=MAX_BATCH, batch_timeout=MAX_WAIT_S, api_path="/score")
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, timeout=120)
    port = int(os.environ["PEER_PORT"])
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="warning", generate_client_file=False)
