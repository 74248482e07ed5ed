"""The two ways in which a version's adapter reaches the graph that it runs over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from rewardloop.formats.graphs.inputs import GraphInputs


class Adapter(Protocol):
    """Values for the parameters that a graph lets an adapter set."""

    def prepare(self, options: Any) -> None:
        """Change ONNX Runtime's options of a run, if the run needs that."""

    def run(self, session: Any, inputs: GraphInputs, options: Any, place: int) -> Any:
        """Return the logits of a run with these values, on a session of this place. Raises what the session raises."""


class ActiveAdapter:
    """An adapter that ONNX Runtime is given with each run. For a device with its own memory it copies the values then.

    An instance must live as long as its version. Once Python has freed an active adapter, ONNX Runtime scores with the
    graph's default weights and reports no error.

    Args:
        path: The adapter file. Exceptions are ONNX Runtime's own.
    """

    def __init__(self, path: Path) -> None:
        self._adapter = ort.LoraAdapter()
        self._adapter.Load(str(path))

    def prepare(self, options: Any) -> None:
        """Make the adapter the run's active one."""
        options.add_active_adapter(self._adapter)

    def run(self, session: Any, inputs: GraphInputs, options: Any, place: int) -> Any:
        """Run the session with the options, which name the adapter."""
        return session.run(["logits"], inputs, options)[0]


class BoundAdapter:
    """An adapter whose values lie at each place for as long as the version is loaded, and are bound as inputs.

    ONNX Runtime ignores active adapters under an IOBinding and reports no error, so none is made active.

    Args:
        parameters: ONNX Runtime's values of an adapter file, by the names of the parameters.
        memory: ONNX Runtime's name of the device's memory.
        device_ids: Which of the devices with such a memory each place is.
    """

    def __init__(self, parameters: dict[str, Any], memory: str, device_ids: Sequence[int]) -> None:
        # On a CPU the values that are bound are views of these arrays.
        self._arrays = {name: np.array(value.numpy(), order="C") for name, value in parameters.items()}
        self._values = [
            {name: ort.OrtValue.ortvalue_from_numpy(array, memory, device_id) for name, array in self._arrays.items()}
            for device_id in device_ids
        ]

    def prepare(self, options: Any) -> None:
        """Leave the options as they are."""

    def run(self, session: Any, inputs: GraphInputs, options: Any, place: int) -> Any:
        """Run the session with the values that lie at its place bound beside the inputs."""
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, value in self._values[place].items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits")
        session.run_with_iobinding(binding, options)
        return binding.copy_outputs_to_cpu()[0]
