"""The model behind every Python peer: the same Hugging Face sequence classifier, run by transformers and torch."""

from __future__ import annotations

import os

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

# How a batching peer may batch. 32 and 10 ms are what their documentation's examples use.
MAX_BATCH = int(os.environ.get("PEER_MAX_BATCH", "32"))
MAX_WAIT_S = float(os.environ.get("PEER_MAX_WAIT_MS", "10")) / 1000


class Scorer:
    """Settings come from the environment, for some peers own their command line.

    PEER_MODEL: the model's directory. PEER_MAX_LENGTH: tokens of a pair. PEER_THREADS: of torch.
    """

    def __init__(self) -> None:
        torch.set_num_threads(int(os.environ["PEER_THREADS"]))
        directory = os.environ["PEER_MODEL"]
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
        self._is_decoder = self._model.config.model_type == "llama"
        self._limits = {"truncation": True, "max_length": int(os.environ["PEER_MAX_LENGTH"])}

    @torch.inference_mode()
    def score(self, pairs: list[tuple[str, str]]) -> list[float]:
        """One logit a pair: one padded batch, each pair a row."""
        if self._is_decoder:  # rewardloop's plain layout for decoders
            texts = [f"[CLS]User: {prompt} Assistant: {response}[SEP]" for prompt, response in pairs]
            rows = self._tokenizer(
                texts, add_special_tokens=False, padding=True, return_tensors="pt",
                return_token_type_ids=False, **self._limits,
            )  # fmt: skip
        else:
            prompts, responses = zip(*pairs, strict=True)
            rows = self._tokenizer(list(prompts), list(responses), padding=True, return_tensors="pt", **self._limits)
        return [float(logit) for logit in self._model(**rows).logits[:, 0]]

    def score_group(self, prompt: str, responses: list[str]) -> list[float]:
        return self.score([(prompt, response) for response in responses])

    def score_groups(self, groups: list[dict]) -> list[list[float]]:
        """The groups ``{prompt, responses}`` of one batch, as one padded batch of rows."""
        scores = iter(self.score([(g["prompt"], response) for g in groups for response in g["responses"]]))
        return [[next(scores) for _ in g["responses"]] for g in groups]
