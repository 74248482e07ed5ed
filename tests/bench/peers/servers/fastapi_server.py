"""FastAPI + transformers, as the remote reward servers that RLHF frameworks ship: a call is a batch of its own."""

from __future__ import annotations

import os

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from scorer import Scorer

app = FastAPI()
scorer = Scorer()


@app.post("/score")
async def score(request: Request) -> JSONResponse:
    group = await request.json()
    return JSONResponse({"scores": scorer.score_group(group["prompt"], group["responses"])})


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PEER_PORT"]), log_level="warning")
