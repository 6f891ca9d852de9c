"""Tests that hold for every teacher input.

Legend: B examples, L vectors of an entity, K width of a vector, M tokens, D width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from exfm.interfaces.component import Component
from exfm.interfaces.input_spec import EXAMPLE, InputSpec
from exfm.interfaces.teacher_input import TeacherInput, VectorHistory
from exfm.testing.component import ComponentTests
from exfm.testing.network import check_bits, check_close
from exfm.testing.operations import Operations
from exfm.testing.side_effects import noticed, settings_checked

Histories = dict[str, VectorHistory]
_MEANINGLESS = 1e3


class TeacherInputTests(ComponentTests):
    """Tests of a teacher input; see ``exfm.testing`` for how to use them.

    ``configs`` leave ``teacher`` and ``entities`` out.

    Attributes:
        dim: width of tokens.
        widths: width of the teacher's states, by entity.
        embedding_dim: width of the teacher's embedding of the example, of a component that reads it.
    """

    interface: ClassVar[type[Component]] = TeacherInput
    dim: ClassVar[int] = 8
    widths: ClassVar[Mapping[str, int]] = {"user": 5, "item": 3}
    embedding_dim: ClassVar[int] = 5

    def config(self, fields: Mapping[str, Any]) -> Any:
        """The Config of fields as written in YAML, and of a teacher."""
        return super().config({"teacher": "fm", **fields})

    def make(self, fields: Mapping[str, Any], *, seed: int = 0, widths: Mapping[str, int] | None = None) -> Any:
        """The component, built under a seed, in double precision."""
        config = self.config(fields)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.component(config, self.spec(config, widths))
        return module.double()

    def spec(self, config: Any, widths: Mapping[str, int] | None = None) -> InputSpec:
        """The surroundings of a component: vectors of entities, or the embedding of the example."""
        if self.component.reads == "embedding":
            return InputSpec(self.dim, 1, {EXAMPLE: self.embedding_dim})
        return InputSpec(self.dim, config.length, widths or self.widths)

    def histories(self, module: Any, size: int = 8) -> Histories:
        """Draws histories of examples with all, some and none of the vectors."""
        generator, length = torch.Generator().manual_seed(size), module.inputs.length
        histories = {}
        for entity, width in module.inputs.widths.items():
            vector_BLK = torch.randn(size, length, width, generator=generator, dtype=torch.float64)
            count_B = torch.randint(0, length + 1, (size,), generator=generator)
            count_B[:2] = torch.tensor([0, length])[:size]
            valid_BL = torch.arange(length) < count_B.unsqueeze(1)
            histories[entity] = VectorHistory(vector_BLK * valid_BL.unsqueeze(2), valid_BL)
        return histories

    def test_tokens_have_the_declared_shape_and_are_finite(self, fields: Mapping[str, Any]) -> None:
        """(B, M, D) for any number of examples, with and without vectors."""
        module = self.make(fields)
        for size in (8, 1, 0):
            tokens_BMD = module(self.histories(module, size))
            expected = (size, module.num_tokens, self.dim)
            assert tokens_BMD.shape == expected, f"it gives {tuple(tokens_BMD.shape)}, not {expected}"
            assert tokens_BMD.isfinite().all(), f"of {size} examples, its tokens are not finite"

    def test_an_example_depends_on_itself_alone(self, fields: Mapping[str, Any]) -> None:
        """The tokens of a request must not depend on the others of its batch."""
        module = self.make(fields)
        histories = self.histories(module)
        tokens_BMD = module(histories)
        alone = [module(_map(histories, lambda value, row=row: value[row : row + 1])) for row in range(8)]
        check_close(torch.cat(alone), tokens_BMD, "its tokens, of each example alone and of all together")

    def test_a_vector_that_there_is_not_changes_nothing(self, fields: Mapping[str, Any]) -> None:
        """Where ``valid`` is false, the vector has no meaning."""
        module = self.make(fields)
        histories = self.histories(module)
        other = {
            entity: VectorHistory(
                history.vector_BLK.where(history.valid_BL.unsqueeze(2), _MEANINGLESS), history.valid_BL
            )
            for entity, history in histories.items()
        }
        check_bits(module(other).flatten(), module(histories).flatten(), "its tokens, with other unknown vectors")

    def test_every_part_learns(self, fields: Mapping[str, Any]) -> None:
        """A parameter without a gradient costs memory and teaches nothing."""
        module = self.make(fields)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.1  # a layer of zeros stops the gradient of the layers before it
        module(self.histories(module)).square().sum().backward()
        still = [name for name, value in module.named_parameters() if value.grad is None or not value.grad.any()]
        assert not still, f"no gradient reaches {', '.join(still)}"

    def test_the_newest_vector_counts(self, fields: Mapping[str, Any]) -> None:
        """It knows most of the present; a component that drops it reads stale states."""
        module = self.make(fields)
        histories = _map(self.histories(module), lambda value: value[1:2])
        moved = {
            entity: VectorHistory(
                history.vector_BLK + (torch.arange(history.vector_BLK.shape[1]) == 0).view(1, -1, 1), history.valid_BL
            )
            for entity, history in histories.items()
        }
        assert not torch.equal(module(moved), module(histories)), "its tokens do not depend on the newest vectors"

    def test_an_embedding_is_a_single_vector(self, fields: Mapping[str, Any]) -> None:
        """Of the example there is one embedding, and no history of them."""
        if self.component.reads != "embedding":
            pytest.skip("it reads states, of which there may be many")
        length = self.config(fields).length
        assert length == 1, f"its Config asks for {length} vectors of the example; there is one embedding"

    def test_runs_repeat(self, fields: Mapping[str, Any]) -> None:
        """All randomness is drawn from torch's generator when it is built; training mode changes nothing."""
        module = self.make(fields)
        histories = self.histories(module)
        expected = module.train()(histories).flatten()
        check_bits(self.make(fields)(histories).flatten(), expected, "its tokens, built again under one seed")
        check_bits(module.eval()(histories).flatten(), expected, "its tokens, in training and in evaluation mode")

    def test_saved_state_is_the_whole_state(self, fields: Mapping[str, Any]) -> None:
        """Loads ``state_dict()``, written without pickle, into a new module, as serving does."""
        module, other = self.make(fields), self.make(fields, seed=1)
        other.load_state_dict(load(save(module.state_dict())))
        histories = self.histories(module)
        check_bits(other(histories).flatten(), module(histories).flatten(), "its tokens, of loaded state")

    def test_names_do_not_decide(self, fields: Mapping[str, Any]) -> None:
        """Renames entities: names must not change the module, because a set has another order in each process."""
        if self.component.reads == "embedding":
            pytest.skip("it reads the example, whose name is always the same")
        module = self.make(fields)
        names = {
            entity: f"zz_{number}_{entity[::-1]}" for number, entity in enumerate(sorted(self.widths, reverse=True))
        }
        other = self.make(fields, widths={names[entity]: width for entity, width in self.widths.items()})
        histories = self.histories(module)
        renamed = {names[entity]: history for entity, history in histories.items()}
        check_bits(other(renamed).flatten(), module(histories).flatten(), "its tokens, with entities of other names")

    def test_the_process_is_left_alone(self, fields: Mapping[str, Any]) -> None:
        """Seeds and settings are the run's, and no batch is kept in memory."""
        with settings_checked(self.component), noticed("manual_seed") as seeded:
            module = self.component(self.config(fields), self.make(fields).inputs).double()
        assert len(seeded) <= 1, "its constructor calls torch.manual_seed; draw from torch's generator as it is"
        histories = self.histories(module)
        with Operations() as operations:
            module(histories)
        lasting = [*module.state_dict().values(), *_tensors(histories)]
        left = operations.left(lasting)
        assert not left, f"of a batch that is over, the result of {left[0]} is still in memory; what lasts is a buffer"

    def test_builds_without_memory(self, fields: Mapping[str, Any]) -> None:
        """``exfm validate`` builds every component on the meta device, where tensors have shapes and no values."""
        config = self.config(fields)
        with torch.device("meta"):
            module = self.component(config, self.spec(config))
        real = [name for name, value in module.state_dict().items() if not value.is_meta]
        assert not real, f"built on the meta device, {', '.join(real)} took memory; leave the device to torch's default"

    def test_exports(self, fields: Mapping[str, Any]) -> None:
        """It is inside the served model, whose graph ``torch.export`` captures."""
        module = self.make(fields).float().eval()
        histories = _map(self.histories(module), lambda value: value.float() if value.is_floating_point() else value)
        entities = list(histories)
        flat = _tensors(histories)
        program = torch.export.export(_Flat(module, entities), tuple(flat), strict=False)
        captured = program.module()(*flat)
        assert torch.allclose(captured, module(histories), atol=1e-5), "the captured graph gives other tokens"


class _Flat(nn.Module):
    """Takes the tensors of histories as separate arguments."""

    def __init__(self, module: Any, entities: list[str]) -> None:
        super().__init__()
        self.module, self.entities = module, entities

    def forward(self, *tensors: Tensor) -> Tensor:
        pairs = zip(tensors[::2], tensors[1::2], strict=True)
        histories = {entity: VectorHistory(*pair) for entity, pair in zip(self.entities, pairs, strict=True)}
        tokens_BMD: Tensor = self.module(histories)
        return tokens_BMD


def _tensors(histories: Mapping[str, VectorHistory]) -> list[Tensor]:
    """Lists the tensors of histories."""
    return [tensor for history in histories.values() for tensor in (history.vector_BLK, history.valid_BL)]


def _map(histories: Histories, change: Any) -> Histories:
    result: dict[str, VectorHistory] = {}
    for entity, history in histories.items():
        result[entity] = VectorHistory(change(history.vector_BLK), change(history.valid_BL))
    return result
