"""mlserver: open inference protocol over grpc.aio, adaptive batching, one worker process that runs transformers."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Scoring(MLModel):
    async def load(self) -> bool:
        from scorer import Scorer

        self._scorer = Scorer()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Inputs ``prompt`` and ``response``: texts, one row a pair."""
        import numpy

        texts = {each.name: StringCodec.decode_input(each) for each in payload.inputs}
        scores = self._scorer.score(list(zip(texts["prompt"], texts["response"], strict=True)))
        output = NumpyCodec.encode_output("score", numpy.array(scores, dtype=numpy.float32).reshape(-1, 1))
        return InferenceResponse(model_name=self.name, outputs=[output])
