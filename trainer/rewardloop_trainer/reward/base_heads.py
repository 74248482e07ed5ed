"""Finds the trained head of a Hugging Face base, and refuses to drop one or to assemble it wrongly."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from rewardloop_reward.neck import ClassifierNeck, StateNeck
from rewardloop_reward.trunk import load_complete, load_trunk, some_of, text_model
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.heads.by_tensors import QWEN_SCORES, QWEN_STEPS, read_head
from rewardloop_trainer.reward.heads.choice import HeadChoice, parse_weights
from rewardloop_trainer.reward.heads.labels import label_sum
from rewardloop_trainer.reward.heads.remote_code import RemoteModel, remote_class
from rewardloop_trainer.reward.heads.start import (
    OFFER,
    HeadStart,
    check_step_labels,
    folded,
    head_note,
    labels_of,
    random_ids,
)
from rewardloop_trainer.reward.heads.tensors import last_rows, value_head_names


def load_start(base: str, config: Any, *, decodes: bool, choice: HeadChoice) -> tuple[nn.Module, HeadStart | None]:
    """Load the trunk of a base, and its trained head if it has one.

    Args:
        base: Hugging Face directory or hub id.
        config: Its configuration.
        decodes: Whether it is a decoder.
        choice: Which head the score is.

    Raises:
        UnusableBase: If the base cannot be loaded, or has a head that cannot be used although ``choice`` wants no new
            one.
    """
    if choice.new_heads:
        return load_trunk(base)[0], None
    name = (config.architectures or [""])[0]
    is_native = hasattr(transformers, name)
    remote = _remote_model(base, config, name, choice)
    scores_steps = name.endswith("ForTokenClassification") or name == QWEN_STEPS or not name
    if choice.step_scores is not None and not scores_steps:
        raise UnusableBase(f"{base}: --step-scores is for token classifiers, and this is {name}")
    if name and scores_steps:
        _check_steps(base, decodes, choice)
    if (is_native and name.endswith("ForTokenClassification")) or (not name and choice.step_scores is not None):
        return _load_classifier(base, AutoModelForTokenClassification, decodes, choice, remote)
    if is_native and name.endswith("ForSequenceClassification"):
        return _load_classifier(base, AutoModelForSequenceClassification, decodes, choice, remote)
    trunk, unused = load_trunk(base)
    unused = (*unused, *(each for each in value_head_names(base) if each not in unused))
    if not unused:
        if remote is not None:
            raise UnusableBase(f"{base}: its own class has no trained head that is known; {OFFER}")
        if choice.label_weights:
            raise UnusableBase(f"{base}: --label-weights is for a trained head, and the checkpoint has none")
        return trunk, None
    rows = last_rows(base, unused)
    if not name and rows is not None:
        return _load_classifier(base, AutoModelForSequenceClassification, decodes, choice, remote, rows)
    return trunk, read_head(base, trunk, unused, decodes, choice, remote)


def _remote_model(base: str, config: Any, name: str, choice: HeadChoice) -> RemoteModel | None:
    """Load the base's own code if its score depends on that. Raises `UnusableBase` if the user does not allow it."""
    reference = remote_class(config)
    if reference is None or (name in QWEN_SCORES and not choice.trust_remote_code):
        return None
    if not choice.trust_remote_code:
        raise UnusableBase(
            f"{base}: code of its own computes its score ({reference}): --trust-remote-code "
            "(reward.trust_remote_code of the trainer) runs it here once, to compare with; "
            "--new-heads (reward.new_heads) does without it and draws new heads"
        )
    return RemoteModel(base, reference)


def _check_steps(base: str, decodes: bool, choice: HeadChoice) -> None:
    """Raise `UnusableBase` unless the user chose a score of steps that can be exported."""
    if not decodes:
        raise UnusableBase(
            f"{base}: a token classifier on an encoder, whose classifier.weight scores every token: a step score can "
            f"be read off a decoder only; {OFFER}"
        )
    if choice.step_scores is None:
        raise UnusableBase(
            f"{base}: a token classifier, whose score.weight scores every token: --step-scores last --step-token TOKEN "
            f"reads its last step; {OFFER}"
        )
    if not choice.step_token:
        raise UnusableBase(
            f"{base}: --step-scores {choice.step_scores} needs --step-token, the token at which a step is scored"
        )


def _load_classifier(
    base: str, kind: Any, decodes: bool, choice: HeadChoice, remote: RemoteModel | None, rows: int | None = None
) -> tuple[nn.Module, HeadStart]:
    """Load a classifier of transformers as its trunk and the start of the heads.

    Args:
        base: Hugging Face directory or hub id.
        kind: The automatic class of its kind.
        decodes: Whether it is a decoder.
        choice: Which sum of labels the score is.
        remote: The base's own code, which is then right.
        rows: Number of its labels, if its configuration does not say it.
    """
    reads_end = kind is AutoModelForTokenClassification
    if reads_end:
        _check_steps(base, decodes, choice)
    try:
        loaded, unused = load_complete(kind, base, **({} if rows is None else {"num_labels": rows}))
    except UnusableBase as error:
        raise UnusableBase(f"{error} (read as a {kind.__name__.removeprefix('AutoModelFor')}; {OFFER})") from error
    if unused:
        raise UnusableBase(f"{base}: the classifier does not use all trained weights: {some_of(unused)}; {OFFER}")
    whole = cast(Any, loaded.eval())
    trunk, sequences = cast(Any, text_model(whole.base_model)), random_ids(whole)
    problem, count = whole.config.problem_type, whole.config.num_labels
    if count == 2 and problem in ("regression", "multi_label_classification") and not choice.label_weights:
        raise UnusableBase(
            f"{base}: its two labels are no alternatives (problem_type {problem}), and which sum is the score is "
            f"not known: --label-weights NAME=WEIGHT,... says it; {OFFER}"
        )
    check_step_labels(base, count, choice)
    labels = label_sum(base, labels_of(whole.config, count), parse_weights(choice.label_weights))
    path = _last_layer(base, whole, sequences[0])
    last = whole.get_submodule(path)
    summed = torch.tensor(labels.weights)
    with torch.no_grad():
        if remote is not None:
            found = [remote.logits(ids, len(summed)) for ids in sequences]
        else:
            outputs = [whole(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for ids in sequences]
            found = [each[0, -1] if reads_end else each[0] for each in outputs]
        logits = tuple(float(summed @ each.float()) for each in found)
    _drop_unread_pooler(whole, sequences[0])
    neck = StateNeck.of(whole, path) if decodes else ClassifierNeck(whole, path)
    known = {f"{path}.weight", f"{path}.bias"}
    if isinstance(neck, StateNeck):
        known |= {f"{neck.path}.{name}" for name, _ in neck.module.named_parameters()}
    if decodes and (more := sorted(_names_outside(whole, whole.base_model) - known)):
        raise UnusableBase(f"{base}: {type(whole).__name__} has layers that are not known: {some_of(more)}; {OFFER}")
    pad = whole.config.get_text_config().pad_token_id
    skips = not reads_end if remote is None else remote.skips(sequences[0], pad, len(summed))
    weight, bias = folded(last.weight, last.bias, summed)
    return trunk, HeadStart(weight, bias, neck, sequences, logits, skips, head_note(labels.note, choice), count)


def _last_layer(base: str, whole: Any, ids: Tensor) -> str:
    """Return the path of the linear layer outside the trunk that computes a classifier's logits."""
    called: list[str] = []
    inside = f"{whole.base_model_prefix}."
    hooks = [
        module.register_forward_hook(lambda *_, path=path: called.append(path))
        for path, module in whole.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == whole.config.num_labels
        and not path.startswith(inside)
    ]
    with torch.no_grad():
        whole(input_ids=ids)
    for hook in hooks:
        hook.remove()
    if not called or whole.base_model is whole:
        raise UnusableBase(f"{base}: the classification layers of {type(whole).__name__} are not known; {OFFER}")
    return called[-1]


def _drop_unread_pooler(whole: Any, ids: Tensor) -> None:
    """Take the trunk's pooler away if the classifier does not read what it computes."""
    trunk = whole.base_model
    if getattr(trunk, "pooler", None) is None or "add_pooling_layer" not in inspect.signature(type(trunk)).parameters:
        return
    hook = trunk.pooler.register_forward_hook(lambda module, inputs, output: torch.full_like(output, torch.nan))
    with torch.no_grad():
        is_read = bool(whole(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.isnan().any())
    hook.remove()
    if not is_read:
        trunk.pooler = None


def _names_outside(whole: Any, trunk: nn.Module) -> set[str]:
    inside = {id(parameter) for parameter in trunk.parameters()}
    return {name for name, parameter in whole.named_parameters() if id(parameter) not in inside}
