"""Triton through nvidia-pytriton: Triton's core, gRPC and dynamic batcher, transformers in a Python backend."""

from __future__ import annotations

import os

import numpy
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from scorer import MAX_BATCH, MAX_WAIT_S, Scorer

scorer = Scorer()


@batch
def infer(prompt: numpy.ndarray, response: numpy.ndarray) -> dict[str, numpy.ndarray]:
    pairs = [(p[0].decode(), r[0].decode()) for p, r in zip(prompt, response, strict=True)]
    return {"score": numpy.array(scorer.score(pairs), dtype=numpy.float32).reshape(-1, 1)}


if __name__ == "__main__":
    port = int(os.environ["PEER_PORT"])
    config = TritonConfig(
        grpc_address="127.0.0.1", grpc_port=port, http_address="127.0.0.1", http_port=port + 1, allow_metrics=False
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="scoring",
            infer_func=infer,
            inputs=[Tensor(name=name, dtype=bytes, shape=(1,)) for name in ("prompt", "response")],
            outputs=[Tensor(name="score", dtype=numpy.float32, shape=(1,))],
            config=ModelConfig(
                max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=round(1e6 * MAX_WAIT_S))
            ),
        )
        triton.serve()
