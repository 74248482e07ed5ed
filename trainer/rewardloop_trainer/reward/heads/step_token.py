"""Ends the steps of the answers that a token classifier reads with the token at which it scores a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.template_layout import TemplateFormat
from rewardloop.formats.text import RefusedConversation, Steps, Turn
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.data.layout_check import copy_of
from rewardloop_trainer.reward.heads.choice import HeadChoice

_PROBES = (("Two steps.", "One and one is two.", "So it is two."), ("x", "a", " b\nc ", "- d\n"), ("One step.", "1"))


def with_step_end(
    tokenizer: Any, text_format: TextFormat | TemplateFormat, choice: HeadChoice
) -> TextFormat | TemplateFormat:
    """Return the layout whose answers end with the step token, if the score is one of steps.

    If the scores of all steps are combined, or the step token is an added token, which no text can hold, an answer is
    cut into steps at the separator, and each of them ends with the token. Else the answer's own text holds the ends of
    its earlier steps. What the layout would put after an answer is left out: a decoder's score at the step token does
    not depend on it.

    Args:
        tokenizer: The base's Hugging Face tokenizer.
        text_format: The layout.
        choice: Which head the score is.

    Raises:
        UnusableBase: If the step token is not one token, or steps would be laid out otherwise than by the chat
            template.
    """
    if choice.step_scores is None:
        return text_format
    step = _id_of(tokenizer, choice.step_token)
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    steps = None
    if step in added or choice.step_scores != "last":
        steps = Steps(step, _unescaped(choice.step_separator), choice.step_scores != "last")
    if steps is not None and step not in added and isinstance(text_format, TemplateFormat):
        raise UnusableBase(
            f"--step-scores {choice.step_scores} needs a step token that is a token of its own in every text, and the "
            f"chat template is given {choice.step_token!r} as text: --step-scores last reads the last step"
        )
    if isinstance(text_format, TemplateFormat):
        found: TextFormat | TemplateFormat = replace(text_format, closing=(step,), steps=steps)
    else:
        template = text_format.template
        if template is not None:
            template = replace(template, closing=(step,), steps=steps) if steps is None or step in added else None
        response = replace(text_format.response, suffix=(step,))
        found = replace(text_format, response=response, template=template, steps=steps)
    if steps is not None and step in added and _is_exact(tokenizer, text_format):
        _check_steps(tokenizer, found, steps, added[step].content)
    return found


def _is_exact(tokenizer: Any, text_format: TextFormat | TemplateFormat) -> bool:
    """Whether the layout writes as the base's chat template does, and is not a plain one."""
    if not tokenizer.chat_template:
        return False
    (row,) = text_format.layout(copy_of(tokenizer)).prompts([[Turn("user", "a")]])
    asked = [{"role": "user", "content": "a"}]
    theirs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=False)
    return row == list(theirs)


def _check_steps(tokenizer: Any, text_format: TextFormat | TemplateFormat, steps: Steps, name: str) -> None:
    """Compare answers of several steps with the chat template's ids up to the last step token."""
    layout = text_format.layout(copy_of(tokenizer))
    for question, *parts in _PROBES:
        (rows,) = layout.rows([([Turn("user", question)], [steps.separator.join(parts)])])
        content = "".join(f"{part}{name}" for part in parts)
        asked = [{"role": "user", "content": question}, {"role": "assistant", "content": content}]
        whole = list(tokenizer.apply_chat_template(asked, tokenize=True, return_dict=False))
        if steps.token in whole:
            whole = whole[: len(whole) - whole[::-1].index(steps.token)]
        ours = [] if isinstance(rows, RefusedConversation) else [*rows[0].prompt, *rows[0].response]
        if [steps.token if i == steps.written else i for i in ours] != whole:
            raise UnusableBase(
                f"the steps of an answer would be laid out otherwise than {name!r} between them by the chat template; "
                "--layout plain takes a plain layout instead"
            )


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _id_of(tokenizer: Any, named: str) -> int:
    """Return the id of a token that is named by its id, by its piece of the vocabulary, or by its text."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if named.isdecimal() and int(named) in vocabulary.values():
        return int(named)
    text = named.replace("\\n", "\n")
    if text in vocabulary:
        return vocabulary[text]
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1:
        raise UnusableBase(f"--step-token {named!r} is {len(ids)} tokens ({ids}), not one: name one of them by its id")
    return ids[0]
