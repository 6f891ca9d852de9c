"""PLE as an exfm backbone.

Legend: B examples, N tokens, D width of a token, T tasks, S = T + 1 streams, those of the tasks and then the shared
stream, I width of a stream, E experts that a gate mixes, R width of an expert's output and of a representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from exfm import Backbone, ComponentConfig
from exfm.components import BackboneInputs, JaggedSequence
from exfm.layers import ActivationName, ExpertGate, mlp


class PLE(Backbone):
    """Progressive layered extraction (Tang et al., RecSys 2020, 10.1145/3383313.3412236): a representation per task.

    Every task has a stream, and the tasks share a further stream. All begin with ``x = flatten(tokens)``. A level maps
    streams to streams by experts of each stream, mixed by gates::

        x_t' = Gate_t(x_t; [experts_t(x_t) || experts_shared(x_shared)])
        x_shared' = Gate_shared(x_shared; [experts_1(x_1) || ... || experts_T(x_T) || experts_shared(x_shared)])
        Gate(x; f) = sum over e of softmax(W x)_e f_e

    The last level has no shared stream; its task streams are the representations. A single level is the paper's CGC.
    Experts are MLPs. In a single level a task's loss reaches no experts and gates of other tasks. In several it reaches
    the experts that the shared stream mixes.

    With M_t experts of each task and M_s shared experts the FLOPs of a level are, per example, those of
    ``T M_t + M_s`` MLPs and ``2 T (M_t + M_s) (I + R)``; and ``2 (T M_t + M_s) (I + R)`` where it is not the last.

    Args:
        config: see ``Config``.
        inputs: names and width of the tokens, and the tasks.

    Raises:
        ValueError: there are no tasks, because the backbone is inside another component.

    Example::

        inputs = BackboneInputs(tokens=("dense", "user", "item"), dim=16, tasks=("click", "conversion"))
        representation_BTR = PLE(PLE.Config(), inputs)(torch.randn(8, 3, 16), {})  # (8, 2, 64)
    """

    name: ClassVar[str] = "ple"
    per_task: ClassVar[bool] = True

    class Config(ComponentConfig):
        """Fields of `ple`."""

        levels: PositiveInt = Field(2, description="Levels of experts; 1: customised gate control (CGC).")
        shared_experts: PositiveInt = Field(1, description="Experts of the shared stream, in each level.")
        task_experts: PositiveInt = Field(1, description="Experts of each task's stream, in each level.")
        hidden: tuple[PositiveInt, ...] = Field(
            (128, 64), min_length=1, description="Widths of an expert's layers; the last is the representation's."
        )
        activation: ActivationName = Field("relu", description="Follows every layer of an expert.")

    def __init__(self, config: Config, inputs: BackboneInputs) -> None:
        super().__init__(config, inputs)
        if not inputs.tasks:
            raise ValueError("ple: it needs the model's tasks, and a component inside another one has none")
        self.output_dim = config.hidden[-1]
        widths = [len(inputs.tokens) * inputs.dim, *[self.output_dim] * (config.levels - 1)]
        self.levels = nn.ModuleList(
            Level(width, len(inputs.tasks), config, last=number == config.levels)
            for number, width in enumerate(widths, start=1)
        )

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) to representations (B, T, R). ``sequences`` is not used."""
        streams_BSI = tokens_BND.flatten(1).unsqueeze(1).expand(-1, len(self.inputs.tasks) + 1, -1)
        for level in self.levels:
            streams_BSI = level(streams_BSI)
        return streams_BSI


class Experts(nn.ModuleList):
    """The experts of a stream."""

    def forward(self, stream_BI: Tensor) -> list[Tensor]:
        """Maps a stream (B, I) to the output (B, R) of each expert."""
        return [expert(stream_BI) for expert in self]


class Level(nn.Module):
    """Experts of every stream, and the gates that mix them.

    Args:
        width: I.
        tasks: T.
        config: see ``PLE.Config``.
        last: whether there is no shared stream in the result.
    """

    def __init__(self, width: int, tasks: int, config: PLE.Config, *, last: bool) -> None:
        super().__init__()
        counts = [config.task_experts] * tasks + [config.shared_experts]
        widths = [width, *config.hidden]
        self.experts = nn.ModuleList(
            Experts(mlp(widths, config.activation, activate_last=True) for _ in range(count)) for count in counts
        )
        seen = config.task_experts + config.shared_experts
        self.gates = nn.ModuleList(ExpertGate(width, seen) for _ in range(tasks))
        self.shared_gate = None if last else ExpertGate(width, sum(counts))

    def forward(self, streams_BSI: Tensor) -> Tensor:
        """Maps streams (B, S, I) to streams (B, S, R), or (B, T, R) in the last level."""
        streams = streams_BSI.unbind(1)
        outputs = [experts(stream_BI) for stream_BI, experts in zip(streams, self.experts, strict=True)]
        *of_tasks, shared = outputs
        mixed = [
            gate(stream_BI, torch.stack([*experts, *shared], dim=1))
            for gate, stream_BI, experts in zip(self.gates, streams, of_tasks, strict=False)
        ]
        if self.shared_gate is not None:
            every = [output_BR for experts in outputs for output_BR in experts]
            mixed.append(self.shared_gate(streams[-1], torch.stack(every, dim=1)))
        return torch.stack(mixed, dim=1)
