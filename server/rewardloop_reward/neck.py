"""The layers between a trunk and the score heads: those of the base's trained head, without its last layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

import torch
import transformers
from torch import Tensor, nn

from rewardloop_reward.unusable_base import UnusableBase

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
}
# The weight (out, in) of a linear layer, and its bias (out,).
Layer: TypeAlias = tuple[Tensor, Tensor | None]
_PREFIX = "neck."


class ClassifierNeck(nn.Module):
    """A Hugging Face sequence classifier that borrows its trunk and ends before its last layer.

    The class itself pools the trunk's states and applies its layers, so that every architecture is right without being
    known here.
    """

    def __init__(self, classifier: Any, last: str) -> None:
        """Take the trunk and the last layer off a classifier, which is changed.

        Args:
            classifier: A model for sequence classification.
            last: Path of its last layer, which is linear.
        """
        super().__init__()
        del classifier._modules[classifier.base_model_prefix]
        classifier.set_submodule(last, nn.Identity())
        self.classifier = classifier.float()
        self.last = last

    def forward(self, trunk: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what the last layer reads, (B, d), for inputs that the class takes by name."""
        # A plain attribute, not a submodule: the trunk's parameters are not the neck's.
        vars(self.classifier)[self.classifier.base_model_prefix] = trunk
        return cast(Tensor, self.classifier(**inputs).logits)

    @classmethod
    def of_class(cls, name: str, last: str, config: Any, weights: Mapping[str, Tensor]) -> ClassifierNeck:
        """Make the neck of a class of transformers. Arguments are those that `save_neck` stored.

        Raises:
            UnusableBase: If there is no such classifier.
        """
        with torch.device("meta"):
            neck = cls(_classifier_class(name)(config), last)
        neck.load_state_dict(dict(weights), assign=True)
        return neck


class StateNeck(nn.Module):
    """A module of a decoder's classifier that maps each state of the trunk to what the last layer reads.

    Args:
        module: The module.
        classifier: Name of the classifier's class in transformers.
        path: Path of the module in it.
    """

    def __init__(self, module: nn.Module, classifier: str, path: str) -> None:
        super().__init__()
        self.module = module.float()
        self.classifier_class = classifier
        self.path = path

    def forward(self, states: Tensor) -> Tensor:
        """Return what the last layer reads, (N, d), for states (N, d)."""
        return cast(Tensor, self.module(states))

    @classmethod
    def of(cls, classifier: Any, last: str) -> StateNeck | None:
        """Return the neck of a classifier whose last layer is ``last``; None if it has none, or more than one."""
        found = [
            name
            for name, child in classifier.named_children()
            if name not in (classifier.base_model_prefix, last.partition(".")[0])
            and any(True for _ in child.parameters())
        ]
        if len(found) != 1:
            return None
        return cls(classifier.get_submodule(found[0]), type(classifier).__name__, found[0])

    @classmethod
    def of_class(cls, name: str, path: str, config: Any, weights: Mapping[str, Tensor]) -> StateNeck:
        """Make the neck of a class of transformers. Arguments are those that `save_neck` stored.

        Raises:
            UnusableBase: If there is no such classifier.
        """
        with torch.device("meta"):
            neck = cls(_classifier_class(name)(config).get_submodule(path), name, path)
        neck.load_state_dict(dict(weights), assign=True)
        return neck


Neck: TypeAlias = nn.Sequential | ClassifierNeck | StateNeck


def layers_neck(layers: Sequence[Layer], activation: str) -> nn.Sequential:
    """Make a neck of linear layers that are each followed by a function of `ACTIVATIONS`."""
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        with torch.no_grad():
            linear.weight.copy_(weight)
            if bias is not None:
                linear.bias.copy_(bias)
        modules += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*modules)


def save_neck(neck: Neck | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata from which `load_neck` makes the neck again."""
    if neck is None:
        return {}, {"activation": ""}
    if isinstance(neck, StateNeck):
        about = {"activation": "", "classifier": neck.classifier_class, "module": neck.path}
    elif isinstance(neck, ClassifierNeck):
        about = {"activation": "", "classifier": type(neck.classifier).__name__, "last": neck.last}
    else:
        about = {"activation": _name_of(neck[1])}
    return {f"{_PREFIX}{name}": tensor for name, tensor in neck.state_dict().items()}, about


def load_neck(config: Any, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> Neck | None:
    """Make the neck that `save_neck` stored; None if there was none.

    Args:
        config: The trunk's configuration.
        tensors: By name; others than the neck's are ignored.
        about: The metadata.
    """
    weights = neck_weights(tensors)
    if path := about.get("module", ""):
        return StateNeck.of_class(about["classifier"], path, config, weights)
    if name := about.get("classifier", ""):
        return ClassifierNeck.of_class(name, about["last"], config, weights)
    if not about["activation"]:
        return None
    places = sorted(int(name.split(".")[0]) for name in weights if name.endswith(".weight"))
    layers = [(weights[f"{i}.weight"], weights.get(f"{i}.bias")) for i in places]
    return layers_neck(layers, about["activation"])


def neck_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the neck's state of stored tensors. Older versions stored a single layer without its place."""
    named = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    return {f"0.{name}" if name in ("weight", "bias") else name: tensor for name, tensor in named.items()}


def _classifier_class(name: str) -> Any:
    """Return a class of transformers. Raises `UnusableBase` if it has no such classifier."""
    if not name.endswith(("ForSequenceClassification", "ForTokenClassification")) or not hasattr(transformers, name):
        raise UnusableBase(f"{name} is not a classifier of transformers {transformers.__version__}")
    return getattr(transformers, name)


def _name_of(module: nn.Module) -> str:
    values = torch.linspace(-4, 4, 33)
    with torch.no_grad():
        for name, kind in ACTIVATIONS.items():
            if torch.equal(kind()(values), module(values)):
                return name
    raise UnusableBase(f"the activation {type(module).__name__} of a neck is not known")
