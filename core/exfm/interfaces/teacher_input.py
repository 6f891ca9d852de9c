"""TeacherInput: a teacher's stored vectors in, a few tokens of the model out.

Legend: B examples, L vectors of an entity, K width of a vector, M tokens, D width of a token.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from exfm.interfaces.component import ComponentConfig
from exfm.interfaces.input_spec import InputSpec
from exfm.interfaces.network import Network


class TeacherInputConfig(ComponentConfig):
    """Base of a teacher input's Config."""

    teacher: str = Field(description="Whose stored vectors are read: a name under `models`.")
    entities: tuple[str, ...] = Field(
        (), description="Which of the teacher's entities; all that are features of the model by default."
    )

    @property
    def length(self) -> int:
        """L: how many of the newest vectors of each entity are read, and stored beside the served model."""
        return 1


@dataclass(frozen=True)
class VectorHistory:
    """Holds the teacher's newest vectors of each example's entity, newest first, or its embedding of each example.

    Attributes:
        vector_BLK: (B, L, K); meaningless where the mask is false.
        valid_BL: (B, L) bool, the mask of vectors; valid vectors come first.
    """

    vector_BLK: Tensor
    valid_BL: Tensor


class TeacherInput(Network):
    """Gives a model its teacher's stored vectors as input tokens, at the cost of a lookup per entity when it serves.

    It belongs to the served model, unlike transfer; a control has none. An example's tokens depend on that example
    alone.

    With ``reads = "states"`` an example sees vectors that the teacher computed at earlier examples, less its lag. With
    ``reads = "embedding"`` it sees the teacher's embedding of the example itself, from a forward pass before the
    teacher has trained on the example: a history of length 1 under the name ``EXAMPLE``. Serving then needs the
    teacher's forward pass of each pair of user and candidate, ahead of the request.

    A subclass sets ``name``, usually a ``Config``, and ``num_tokens`` in its constructor where M is not the number of
    entities.

    Attributes:
        reads: the vectors that it reads: states of entities, or the embedding of the example.
        num_tokens: M.
    """

    kind: ClassVar[str] = "teacher_input"
    reads: ClassVar[Literal["states", "embedding"]] = "states"
    Config: ClassVar[type[ComponentConfig]] = TeacherInputConfig
    config: TeacherInputConfig
    inputs: InputSpec
    num_tokens: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls.Config, TeacherInputConfig):
            raise TypeError(f"{cls.__qualname__}.Config must be a subclass of exfm.transfer.TeacherInputConfig")
        if cls.reads not in ("states", "embedding"):
            raise TypeError(f"{cls.__qualname__}.reads must be 'states' or 'embedding', not {cls.reads!r}")

    def __init__(self, config: TeacherInputConfig, inputs: InputSpec) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.inputs = inputs
        self.num_tokens = len(inputs.widths)

    @abstractmethod
    def forward(self, histories: Mapping[str, VectorHistory]) -> Tensor:
        """Maps the vectors of each example, by entity, to tokens (B, M, D)."""
