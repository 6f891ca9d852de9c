"""MMoE as an exfm backbone.

Legend: B examples, N tokens, D width of a token, E experts, T tasks, R width of a representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from exfm import Backbone, ComponentConfig
from exfm.components import BackboneInputs, ComponentField, ComponentSpec, JaggedSequence
from exfm.layers import ExpertGate


class MMoE(Backbone):
    """Multi-gate mixture of experts (Ma et al., KDD 2018, 10.1145/3219819.3220007): a representation per task.

    ::

        x = flatten(tokens)
        representation_t = sum over e of softmax(W_t x)_e f_e(tokens)

    All tasks share the experts ``f_e``, which start from different weights. A task's gate ``W_t`` learns from that
    task's loss alone. Experts are MLPs in the paper; here they may be any backbone that reads tokens.

    Its FLOPs are those of the experts and ``2 T E (N D + R)`` per example.

    Args:
        config: see ``Config``.
        inputs: names and width of the tokens, and the tasks.

    Raises:
        ValueError: there are no tasks, because the backbone is inside another component; or an expert reads raw
            sequences.

    Example::

        inputs = BackboneInputs(tokens=("dense", "user", "item"), dim=16, tasks=("click", "conversion"))
        representation_BTR = MMoE(MMoE.Config(), inputs)(torch.randn(8, 3, 16), {})  # (8, 2, 64)
    """

    name: ClassVar[str] = "mmoe"
    per_task: ClassVar[bool] = True

    class Config(ComponentConfig):
        """Fields of `mmoe`."""

        experts: int = Field(4, ge=2, description="Experts that the tasks share.")
        expert: Annotated[ComponentSpec, ComponentField("backbone")] = Field(
            {"name": "mlp"},  # type: ignore[assignment]  # pydantic turns the default into a spec
            description="The backbone that each expert is; it reads tokens, and no raw sequences.",
        )

    def __init__(self, config: Config, inputs: BackboneInputs) -> None:
        super().__init__(config, inputs)
        if not inputs.tasks:
            raise ValueError("mmoe: it needs the model's tasks, and a component inside another one has none")
        if config.expert.component.consumes_sequences:
            raise ValueError(
                f"mmoe: expert {config.expert.name!r} reads raw sequences; choose a backbone that reads tokens, and "
                "give the model a sequence_encoder"
            )
        experts: list[Backbone] = [
            config.expert.build(BackboneInputs(inputs.tokens, inputs.dim)) for _ in range(config.experts)
        ]
        self.output_dim = experts[0].output_dim
        self.experts = nn.ModuleList(experts)
        # Prefixed: torch refuses a child with the name of an attribute of ModuleDict.
        width = len(inputs.tokens) * inputs.dim
        self.gates = nn.ModuleDict({f"task_{task}": ExpertGate(width, config.experts) for task in inputs.tasks})

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) to representations (B, T, R). ``sequences`` is not used."""
        experts_BER = torch.stack([expert(tokens_BND, {}) for expert in self.experts], dim=1)
        input_BI = tokens_BND.flatten(1)
        return torch.stack([gate(input_BI, experts_BER) for gate in self.gates.values()], dim=1)
