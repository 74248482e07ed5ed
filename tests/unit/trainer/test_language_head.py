"""Log-probabilities that are computed block by block, and their gradients, are those of a model's whole logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from support.tiny_policies import FAMILIES, tiny_policy
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from rewardloop_trainer.data.completions import Completion, forward, token_logprobs
from rewardloop_trainer.data.computing import head
from rewardloop_trainer.data.computing.head import head_of
from rewardloop_trainer.learning.layers import recompute_layers
from rewardloop_trainer.learning.live_bytes import LiveBytes

SHAPE = FAMILIES["llama"]
# Beside the families that policies are proven with: logits that are scaled or bounded, and trunks in other places.
FURTHER: Mapping[str, Mapping[str, Any]] = {
    "cohere": {**SHAPE, "logit_scale": 0.2},
    "granite": {**SHAPE, "logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "gemma2": {**FAMILIES["gemma2"], "final_logit_softcapping": 2.0},
    "opt": {**SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": True},
    "bart": {**SHAPE, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    "bert": {**SHAPE, "is_decoder": True},
    "biogpt": SHAPE,
}
ROWS = [
    Completion((5, 6, 7, 8, 9, 1), 3),
    Completion((9, 8, 7, 6, 5, 4, 3, 1), 2),
    Completion((4, 4, 9, 2, 7, 6, 1), 6),
]


def tiny(family: str, **changes: Any) -> Any:
    torch.manual_seed(3)
    shape = {**(FURTHER.get(family) or FAMILIES[family]), **changes}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape)).float().eval()


def plainly(model: Any, rows: list[Completion], temperature: float = 1.0) -> Tensor:
    """Log-probabilities (rows, columns) from the logits of all tokens, by each sequence alone."""
    found = torch.zeros(len(rows), 6)
    for i, row in enumerate(rows):
        logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].float() / temperature
        targets = torch.tensor(row.ids[row.start :]).unsqueeze(1)
        said = logits[row.start - 1 : -1].log_softmax(-1).gather(1, targets).squeeze(1)
        found = found.index_put((torch.full((row.tokens,), i), torch.arange(row.start - 2, len(row.ids) - 2)), said)
    return found


def gradients(model: Any, values: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss in which every log-probability counts differently."""
    model.zero_grad()
    (values * torch.linspace(0.5, 2.0, values.numel()).view_as(values)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_alike(model: Any, temperature: float = 1.0) -> None:
    """Both ways give the same log-probabilities and gradients within the rounding of float32."""
    expected = plainly(model, ROWS, temperature)
    slopes = gradients(model, expected)
    found, is_token = token_logprobs(model, ROWS, 0, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert is_token.sum(1).tolist() == [row.tokens for row in ROWS]
    again = gradients(model, found)
    assert again.keys() == slopes.keys()
    largest = max(slope.abs().max().item() for slope in slopes.values())
    for name, slope in slopes.items():  # biases of keys have none but rounding's
        atol = max(2e-5 * slope.abs().max().item(), 1e-6 * largest)
        torch.testing.assert_close(again[name], slope, rtol=1e-4, atol=atol, msg=name)


@pytest.fixture
def _blocks_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_BLOCK_LOGITS", 2 * 264)


@pytest.mark.usefixtures("_blocks_of_two")
@pytest.mark.parametrize("family", sorted({*FAMILIES, *FURTHER} - {"rwkv"}))
def test_every_family_is_computed_in_blocks_as_its_own_logits_say(family: str) -> None:
    model = tiny(family)
    assert head_of(model) is not None
    check_alike(model)


@pytest.mark.usefixtures("_blocks_of_two")
@pytest.mark.parametrize("temperature", [0.7, 2.5])
def test_the_temperature_divides_bounded_logits(temperature: float) -> None:
    check_alike(tiny("gemma2"), temperature)


@pytest.mark.usefixtures("_blocks_of_two")
def test_an_embedding_that_is_tied_to_the_head_gets_the_gradients_of_both() -> None:
    model = tiny("llama", tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    check_alike(model)


@pytest.mark.usefixtures("_blocks_of_two")
def test_adapters_on_the_head_learn() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = tiny("llama")
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["lm_head", "q_proj"]), model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.eval()
    check_alike(model)
    learned = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert any("lm_head.lora_A" in name for name in learned)
    assert all("lora_" in name for name in learned)


@pytest.mark.usefixtures("_blocks_of_two")
def test_recomputed_layers_and_recomputed_blocks_go_together() -> None:
    model = tiny("qwen3")
    recompute_layers(model.base_model)
    check_alike(model)


def test_the_states_are_those_from_which_the_tokens_are_predicted() -> None:
    model = tiny("llama")
    with torch.no_grad():
        _, is_token, states = forward(model, ROWS, 0, with_states=True)
        alone = model.model(torch.tensor([ROWS[0].ids])).last_hidden_state[0]
    assert states is not None
    assert states.shape == (*is_token.shape, 32)
    torch.testing.assert_close(states[0, :4], alone[1:5])


class Peculiar(LlamaForCausalLM):
    """A model whose logits depend on its trunk in a way that nobody would expect."""

    change: Callable[[Any, Tensor], Tensor]

    def forward(self, input_ids: Tensor, logits_to_keep: int = 0, **given: Any) -> CausalLMOutputWithPast:
        given["output_hidden_states"] = True
        output = super().forward(input_ids, logits_to_keep=logits_to_keep, **given)
        output.logits = type(self).change(output, output.logits)
        return output


class ByItsFirstLayer(Peculiar):
    change = staticmethod(lambda output, logits: logits + output.hidden_states[1].mean())


class ByItsPositions(Peculiar):
    change = staticmethod(lambda _, logits: logits * torch.arange(1, logits.shape[1] + 1).view(1, -1, 1).flip(1))


@pytest.mark.parametrize("kind", [ByItsFirstLayer, ByItsPositions])
def test_a_head_that_cannot_be_separated_is_named_and_computed_whole(
    kind: type[Peculiar], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    model: Any = kind(LlamaConfig(**SHAPE)).eval()
    rows = [Completion((5, 6, 7, 8, 9, 1), 2), Completion((9, 8, 7, 6, 5, 1), 2)]  # of one length, as it sees positions
    with torch.no_grad():
        found, is_token, states = forward(model, rows, 0, with_states=True)
        logits = model(torch.tensor([row.ids for row in rows])).logits[:, 1:-1]
    expected = logits.log_softmax(-1).gather(2, torch.tensor([row.ids[2:] for row in rows]).unsqueeze(2)).squeeze(2)
    assert head_of(model) is None
    if kind is ByItsPositions:
        torch.testing.assert_close(found, expected)
    assert states is not None
    assert states.shape == (*is_token.shape, 32)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "cannot be separated" in line]
    assert kind.__name__ in line


def test_no_tensor_of_tokens_by_vocabulary_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, tokens = 4_096, 2_000
    monkeypatch.setattr(head, "_BLOCK_LOGITS", 64 * vocabulary)
    model = tiny_policy("llama", vocab_size=vocabulary)
    rows = [Completion(tuple(range(2, 502)), 1) for _ in range(tokens // 500)]
    assert head_of(model) is not None
    largest = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with LiveBytes() as live, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_logprobs(model, rows, 0)[0].sum().backward()
    assert largest < 0.1 * tokens * vocabulary
    assert live.peak < 4 * tokens * vocabulary  # one tensor of all logits in float32
