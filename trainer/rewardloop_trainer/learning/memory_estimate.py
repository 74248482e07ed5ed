"""How much memory a training run needs: one step is run on tensors without data, and their bytes are counted.

The step is that of torch, transformers and PEFT themselves, so that an architecture, adapters, a type of weights or
recomputed layers need no formula. It takes seconds, also for a model that fits into no memory here. Without data,
transformers cannot see that a mask is plainly causal, and repeats keys and values that heads share. This makes the
estimate up to a tenth too high.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import structlog
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModel, AutoModelForCausalLM

from rewardloop_trainer.data.adapters import first_line
from rewardloop_trainer.data.computing.head import head_of, logprobs_of
from rewardloop_trainer.data.computing.torchrun import started_processes
from rewardloop_trainer.learning.layers import layer_stack
from rewardloop_trainer.learning.live_bytes import LiveBytes, bytes_of
from rewardloop_trainer.learning.lora_layers import add_adapters
from rewardloop_trainer.learning.model_load import UnusableDevice, device_of, shape_passes, type_of
from rewardloop_trainer.learning.optimizer import temporary_bytes
from rewardloop_trainer.learning.settings import LearnerSettings

log = structlog.get_logger()

Trainer: TypeAlias = Literal["reward", "sft", "dpo", "kto", "online"]

# The interpreter with torch and transformers, measured on Linux; on a GPU its context takes about as much.
PROCESS_BYTES = 550 * 2**20
# The estimate is within a fifth of what a process takes: tests/bench/training_memory.py.
ERROR = 0.2
_MOMENTS = 8  # bytes of the optimizer for each value that learns
_STORED = {"none": 0.0, "8bit": 1.0, "4bit": 0.53}  # bytes of a quantised value, with its share of the scales


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes at the moment of a run at which it needs the most.

    Attributes:
        weights: The weights, and the reference's where it is a copy; online on the CPU also the weights of the step
            before (`kl_control.KlBound`), which are kept in its memory.
        gradients: The gradients of what learns.
        optimizer: The optimizer's moments.
        activations: What one micro-batch keeps for the backward pass, and temporary tensors, among them what a process
            gathers of a divided model.
        process: The interpreter and its libraries.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    process: int = PROCESS_BYTES

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.process


def estimate_memory(
    config: Any, settings: LearnerSettings, trainer: Trainer, *, tokens: int, longest: int, processes: int = 1
) -> MemoryEstimate:
    """Estimate what training a model takes in a process.

    Args:
        config: The configuration of a model of transformers.
        settings: How it is loaded to be trained.
        trainer: What trains it. DPO and KTO keep the reference's log-probabilities and no reference.
        tokens: Tokens of a micro-batch.
        longest: Tokens of the longest sequence. One that is longer than a micro-batch is one itself.
        processes: How many torchrun started. They count if the settings divide the model among them.
    """
    columns = min(longest, max(tokens, longest))
    rows = max(1, tokens // columns)
    with torch.device("meta"):
        model, trunk = _build(config, settings, trainer)
    with FakeTensorMode():
        _put_on_cpu(model)
        with LiveBytes() as live:
            for _ in range(2):  # the second finds the gradients of the first
                _loss(model, trainer, rows, columns).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():  # reward models are measured on twice as many tokens
                _loss(model, trainer, 2 * rows if trainer == "reward" else rows, columns)
        learned = [p for p in model.parameters() if p.requires_grad]
        gradients, values = bytes_of(learned), sum(p.numel() for p in learned)
        weights = _weight_bytes(model, trunk, settings)
        if trainer == "online" and settings.method == "full":
            weights *= 2
        if trainer == "online" and device_of(settings).type == "cpu":
            weights += gradients  # as many bytes: those of what learns
        work = max(live.peak - gradients, temporary_bytes(learned))
        if not settings.shard or processes == 1:
            return MemoryEstimate(weights, gradients, _MOMENTS * values, work)
        work += _gathered_bytes(model, trunk)
    weights, gradients, moments = (-(-part // processes) for part in (weights, gradients, _MOMENTS * values))
    return MemoryEstimate(weights, gradients, moments, work)


def check_memory(config: Any, settings: LearnerSettings, trainer: Trainer, *, tokens: int, longest: int) -> None:
    """Refuse a run that does not fit into the memory of its device, and warn of one that may not.

    Arguments are those of `estimate_memory`. A run that is far below the memory is not estimated.

    Raises:
        UnusableDevice: If the run needs more than there is, also if the estimate is a fifth too high.
    """
    device, processes = device_of(settings), started_processes()
    free = free_bytes(device)
    try:
        if _at_most(config, max(tokens, longest)) < free / 2:
            return
        found = estimate_memory(config, settings, trainer, tokens=tokens, longest=longest, processes=processes)
    except Exception as error:  # an architecture that does not run on tensors without data may still be trained
        log.warning("the memory that this run needs cannot be estimated", reason=first_line(error))
        return
    text = (
        f"this run needs about {found.total / 2**30:.1f} GiB of memory, and {device} has {free / 2**30:.1f} GiB for it"
    )
    if found.total * (1 - ERROR) > free:
        raise UnusableDevice(f"{text}: {_advice(settings, found)}")
    if found.total * (1 + ERROR) > free:
        log.warning(text, advice=_advice(settings, found))


def free_bytes(device: torch.device) -> int:
    """Memory of a device that this process can use: what is free, or left by its control group, and what it holds."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    about = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(about["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    held = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return free + int(held["VmRSS"].split()[0]) * 1024


def _build(config: Any, settings: LearnerSettings, trainer: Trainer) -> tuple[Any, nn.Module]:
    """The model as it is trained, without data, and its trunk."""
    kind: Any = AutoModel if trainer == "reward" else AutoModelForCausalLM
    attention = {} if settings.attention == "auto" else {"attn_implementation": settings.attention}
    model = kind.from_config(config, dtype=type_of(settings), **attention).eval()
    trunk = model.base_model
    if settings.method == "lora":
        add_adapters(model, settings.lora)
    shape_passes(model, trunk, settings)
    return model, trunk


def _put_on_cpu(model: nn.Module) -> None:
    """Replace parameters and buffers on no device by ones without data that count as the CPU's, tied ones once."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if tensor not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[tensor] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                held[name] = made[tensor]  # type: ignore[assignment]


def _loss(model: Any, trainer: Trainer, rows: int, columns: int) -> Tensor:
    """A loss with the tensors that the trainer's own loss makes. It sees the whole sequence as completion.

    Tokens are picked out of states, or of logits if there are some of all tokens, by a copy.
    """
    ids = torch.zeros(rows, columns, dtype=torch.long)
    if trainer == "reward":
        mask = {} if _is_causal(model) else {"attention_mask": torch.ones_like(ids)}
        states: Tensor = model(input_ids=ids, **mask).last_hidden_state
        return states.float().mean()
    targets = ids[:, 1:].flatten()
    if head := head_of(model):
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        return head.logprobs(states.flatten(0, 1).clone(), targets).mean()
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return logprobs_of(logits.flatten(0, 1).clone(), targets, 1.0).mean()


def _is_causal(model: Any) -> bool:
    return any(getattr(module, "is_causal", False) for module in model.modules())


def _weight_bytes(model: nn.Module, trunk: nn.Module, settings: LearnerSettings) -> int:
    whole = bytes_of((*model.parameters(), *model.buffers()))
    if settings.quantised_base == "none":
        return whole
    # Inside an adapted layer the linear layer is one itself.
    linear = [
        module.weight
        for name, module in layer_stack(trunk).named_modules()
        if type(module) is nn.Linear and "lora_" not in name
    ]
    held = sum(weight.numel() for weight in linear)
    return whole - bytes_of(linear) + int(held * _STORED[settings.quantised_base])


def _gathered_bytes(model: nn.Module, trunk: nn.Module) -> int:
    """The most that a process gathers at a time of a divided model, with the gradients of it.

    What is outside of the layers is gathered for a whole pass, and beside it the layer that runs and the next one.
    Gradients are copied when they are added up.
    """
    layers = layer_stack(trunk)
    within = set(layers.parameters())
    outside = [p for p in model.parameters() if p not in within]
    largest = max((list(layer.parameters()) for layer in layers), key=bytes_of)
    of_outside, of_layer = (bytes_of(p for p in each if p.requires_grad) for each in (outside, largest))
    return bytes_of(outside) + of_outside + max(of_outside, 2 * bytes_of(largest) + 2 * of_layer)


def _at_most(config: Any, tokens: int) -> float:
    """A generous bound of the bytes, by the shape alone: full training in float32."""
    text = config.get_text_config()
    width, vocabulary = int(text.hidden_size), int(text.vocab_size)
    layers = int(text.num_hidden_layers)
    inner = int(getattr(text, "intermediate_size", None) or 4 * width)
    experts = int(getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None) or 1)
    weights = layers * (6 * width**2 + 3 * width * inner * experts) + 2 * vocabulary * width
    return PROCESS_BYTES + 20 * weights + tokens * (layers * (60 * width + 20 * inner) * 4 + 20 * vocabulary)


def _advice(settings: LearnerSettings, found: MemoryEstimate) -> str:
    ways = []
    if settings.method == "full":
        ways.append("method lora")
    if started_processes() > 1 and not settings.shard:
        ways.append("shard")
    if settings.weights == "float32":
        ways.append("weights bfloat16")
    if not settings.gradient_checkpointing:
        ways.append("gradient_checkpointing")
    if found.activations > found.total / 4:
        ways.append("a smaller micro_batch_tokens")
    return f"try {', '.join(ways)}" if ways else "take a smaller model or a larger device"
