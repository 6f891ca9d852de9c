"""Tests that hold for every task head.

Legend: B examples, K outputs of the head, W numbers of a prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from exfm.interfaces.component import Component
from exfm.interfaces.schema import Label
from exfm.interfaces.task_head import TaskHead
from exfm.testing.component import ComponentTests
from exfm.testing.network import check_bits, check_close
from exfm.testing.side_effects import noticed, settings_checked

_FAR = 30.0  # outputs that a model reaches when it learns too fast


class TaskHeadTests(ComponentTests):
    """Tests of a task head; see ``exfm.testing`` for how to use them.

    Attributes:
        label: fields of the label beside name and kind; a regression label has a minimum of 0 by default.
    """

    interface: ClassVar[type[Component]] = TaskHead
    label: ClassVar[Mapping[str, Any]] = {}

    def spec(self) -> Label:
        """Describes the label."""
        kind = self.component.label_kind
        defaults: dict[str, Mapping[str, Any]] = {"regression": {"minimum": 0.0}, "multiclass": {"classes": 5}}
        return Label(name="label", kind=kind, **{**defaults.get(kind, {}), **self.label})

    def make(self, fields: Mapping[str, Any]) -> Any:
        """The head before its first labels, in double precision."""
        return self.component(self.config(fields), self.spec()).double()

    def make_started(self, fields: Mapping[str, Any]) -> Any:
        """The head after its first labels."""
        head, label_B = self.make(fields), self.labels(64, seed=1)
        head.start(label_B, torch.ones_like(label_B))
        head.started.fill_(True)
        return head

    def labels(self, size: int, *, seed: int = 0) -> Tensor:
        """Draws labels: of a regression numbers with a heavy tail, some of them the minimum."""
        generator, spec = torch.Generator().manual_seed(seed), self.spec()
        uniform_B = torch.rand(size, generator=generator, dtype=torch.float64)
        if spec.kind != "regression":
            return (uniform_B * max(spec.width, 2)).floor()
        spread_B = (1.5 * torch.randn(size, generator=generator, dtype=torch.float64)).exp()
        return (spec.minimum or 0.0) + 10 * spread_B * (uniform_B > 0.2)

    def outputs(self, head: Any, size: int, *, seed: int = 2) -> Tensor:
        """Draws outputs, (B,) or (B, K)."""
        generator = torch.Generator().manual_seed(seed)
        shape = (size,) if head.num_outputs == 1 else (size, head.num_outputs)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def constant(self, head: Any, bias_K: Tensor, size: int) -> Tensor:
        """Returns the outputs of a head that has learned nothing but its bias."""
        return bias_K.expand(size) if head.num_outputs == 1 else bias_K.expand(size, -1)

    def test_outputs_have_the_declared_shapes_and_are_finite(self, fields: Mapping[str, Any]) -> None:
        """(B,) losses, and predictions of the label's width, for any number of examples and outputs far from usual."""
        head, width = self.make_started(fields), self.spec().width
        for size in (8, 1, 0):
            output = self.outputs(head, size)
            for scale in (1.0, _FAR):
                loss_B, predicted = head.loss(scale * output, self.labels(size)), head.predict(scale * output)
                assert loss_B.shape == (size,), f"losses of {size} examples are {tuple(loss_B.shape)}"
                shape = (size, width) if self.spec().kind == "multiclass" else (size,)
                assert predicted.shape == shape, f"predictions are {tuple(predicted.shape)}, not {shape}"
                assert predicted.isfinite().all(), f"at outputs {scale:g} from 0 predictions are not finite"
                assert loss_B.isfinite().all(), f"at outputs {scale:g} from 0 losses are not finite"

    def test_predictions_are_of_the_label(self, fields: Mapping[str, Any]) -> None:
        """Of a binary label the sigmoid of the output, of classes probabilities that sum up to 1."""
        head = self.make_started(fields)
        output = self.outputs(head, 8)
        predicted = head.predict(output)
        if head.label_kind == "binary":
            assert head.num_outputs == 1, "a head of a binary label has one output, its logit"
            check_close(predicted, output.sigmoid(), "predictions of a binary label, and the sigmoid of its logit")
        elif head.label_kind == "multiclass":
            assert (predicted >= 0).all(), "a probability is below 0"
            check_close(
                predicted.sum(dim=1), torch.ones(8, dtype=torch.float64), "the sum of the classes' probabilities"
            )
        else:
            assert predicted.unique().numel() > 1, "predictions do not depend on the output"

    def test_it_starts_among_its_labels(self, fields: Mapping[str, Any]) -> None:
        """The bias (K,) that ``start`` returns predicts about as a constant can; the trunk need not learn it."""
        head, label_B = self.make(fields), self.labels(64, seed=1)
        bias_K = head.start(label_B, torch.ones_like(label_B))
        assert bias_K.shape == (head.num_outputs,), f"start returns {tuple(bias_K.shape)}, not {(head.num_outputs,)}"
        predicted = head.predict(self.constant(head, bias_K, 1))
        if head.label_kind == "multiclass":
            shares_C = torch.stack([(label_B == number).double().mean() for number in range(self.spec().width)])
            assert (predicted[0] - shares_C).abs().max() < 0.1, "it does not start at the classes' frequencies"
        elif head.label_kind == "binary":
            assert (predicted[0] - label_B.mean()).abs() < 0.1, "it does not start at the rate of the labels"
        else:
            assert label_B.min() <= predicted[0] <= label_B.max(), "it starts at a value beyond all labels"

    def test_starting_counts_examples_by_their_weight(self, fields: Mapping[str, Any]) -> None:
        """Weight 2 is the row twice, and weight 0 no row, whatever its label, which may be unknown."""
        label_B, weight_B = self.labels(12, seed=1), torch.arange(12, dtype=torch.float64) % 3
        other_B = torch.where(weight_B > 0, label_B, self.labels(12, seed=5))
        index = torch.arange(12).repeat_interleave(weight_B.long())
        weighted, repeated = self.make(fields), self.make(fields)
        bias_K = weighted.start(other_B, weight_B)
        expected_K = repeated.start(label_B[index], torch.ones(index.numel(), dtype=torch.float64))
        check_close(bias_K, expected_K, "the bias of weighted and of repeated rows")
        for name, value in weighted.state_dict().items():
            check_close(value, repeated.state_dict()[name], f"{name}, of weighted and of repeated rows")

    def test_labels_that_are_all_alike_start_it_too(self, fields: Mapping[str, Any]) -> None:
        """A first batch may have a single label."""
        head, label_B = self.make(fields), self.labels(64, seed=1)[:1]
        bias_K = head.start(label_B, torch.ones_like(label_B))
        output = self.constant(head, bias_K, 8)
        assert head.loss(output, self.labels(8)).isfinite().all(), (
            "started on a single label, its losses are not finite"
        )

    def test_an_example_depends_on_itself_alone(self, fields: Mapping[str, Any]) -> None:
        """The core averages losses with weights; a loss that has seen the batch would be weighted wrongly."""
        head = self.make_started(fields)
        output, label_B = self.outputs(head, 8), self.labels(8)
        alone = [head.loss(output[row : row + 1], label_B[row : row + 1]) for row in range(8)]
        check_close(torch.cat(alone), head.loss(output, label_B), "losses, of each example alone and of all together")
        alone = [head.predict(output[row : row + 1]) for row in range(8)]
        check_close(torch.cat(alone), head.predict(output), "predictions, of each example alone and of all together")

    def test_a_step_lowers_the_loss(self, fields: Mapping[str, Any]) -> None:
        """The gradient of the loss is finite and leads to the labels."""
        head = self.make_started(fields)
        output, label_B = self.outputs(head, 64).requires_grad_(), self.labels(64)
        loss = head.loss(output, label_B).mean()
        (gradient,) = torch.autograd.grad(loss, output)
        assert gradient.isfinite().all() and gradient.any(), "the gradient of its loss is not finite, or zero"
        with torch.no_grad():
            stepped = head.loss(output - 1e-3 * gradient, label_B).mean()
        assert stepped < loss, f"a small step along the gradient raises the loss from {loss:.6g} to {stepped:.6g}"

    def test_a_teacher_that_agrees_teaches_nothing(self, fields: Mapping[str, Any]) -> None:
        """The soft loss is smallest where the head predicts as the teacher; otherwise distillation adds a bias."""
        head = self.make_started(fields)
        output = self.outputs(head, 8).requires_grad_()
        teacher = head.predict(output).detach()
        if head.label_kind == "regression" and self.spec().minimum is not None:
            teacher = teacher.clamp(min=self.spec().minimum)
        agrees = torch.isclose(head.predict(output).detach(), teacher).reshape(8, -1).all(dim=1)
        (gradient,) = torch.autograd.grad(head.soft_loss(output, teacher).sum(), output)
        size = gradient.reshape(8, -1).abs().amax(dim=1)[agrees]
        assert agrees.any() and (size < 1e-8).all(), f"a teacher that agrees moves an output by {size.max():.3g}"
        other = self.outputs(head, 8, seed=3)
        differing = head.soft_loss(other, teacher)
        assert (differing[agrees] >= head.soft_loss(output, teacher)[agrees] - 1e-10).all(), "a worse output costs less"

    def test_the_inverse_is_one(self, fields: Mapping[str, Any]) -> None:
        """``output_of`` gives the output that ``predict`` maps to the prediction."""
        head = self.make_started(fields)
        if not head.invertible:
            pytest.skip(f"{head.name} is not invertible")
        predicted = head.predict(self.outputs(head, 8))
        check_close(head.predict(head.output_of(predicted)), predicted, "predictions, and those of their outputs")

    def test_it_has_no_parameters(self, fields: Mapping[str, Any]) -> None:
        """The layers are the core's; a parameter here would have no optimizer."""
        assert not list(self.make(fields).parameters()), "a task head has buffers, and no parameters"

    def test_saved_state_is_the_whole_state(self, fields: Mapping[str, Any]) -> None:
        """Loads ``state_dict()``, written without pickle, into a new head, as serving does."""
        head, other = self.make_started(fields), self.make(fields)
        other.load_state_dict(load(save(head.state_dict())))
        output, label_B = self.outputs(head, 8), self.labels(8)
        check_bits(other.predict(output).flatten(), head.predict(output).flatten(), "predictions of loaded state")
        check_bits(other.loss(output, label_B), head.loss(output, label_B), "losses of loaded state")

    def test_labels_change_nothing_after_the_start(self, fields: Mapping[str, Any]) -> None:
        """Losses and predictions set no buffer: the same weights mean the same from the first label on."""
        head = self.make_started(fields)
        before = {name: value.clone() for name, value in head.state_dict().items()}
        output = self.outputs(head, 8)
        head.loss(output, self.labels(8))
        head.soft_loss(output, head.predict(self.outputs(head, 8, seed=4)))
        for name, value in head.state_dict().items():
            check_bits(value.reshape(-1), before[name].reshape(-1), f"{name}, after losses and predictions")

    def test_builds_without_memory(self, fields: Mapping[str, Any]) -> None:
        """``exfm validate`` builds every component on the meta device, where tensors have shapes and no values."""
        config, spec = self.config(fields), self.spec()
        with torch.device("meta"), settings_checked(self.component), noticed("manual_seed") as seeded:
            head = self.component(config, spec)
        assert not seeded, "its constructor calls torch.manual_seed; there is nothing to draw"
        real = [name for name, value in head.state_dict().items() if not value.is_meta]
        assert not real, f"built on the meta device, {', '.join(real)} took memory; leave the device to torch's default"

    def test_exports(self, fields: Mapping[str, Any]) -> None:
        """Its predictions are inside the served graph, which ``torch.export`` captures."""
        head = self.make_started(fields).float()
        output = self.outputs(head, 8).float()
        captured = torch.export.export(_Prediction(head), (output,), strict=False).module()(output)
        expected = head.predict(output)
        assert torch.allclose(captured, expected, rtol=1e-5, atol=1e-5), "the captured graph gives other predictions"


class _Prediction(nn.Module):
    """Predicts by a head."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(self, output: Tensor) -> Tensor:
        predicted: Tensor = self.head.predict(output)
        return predicted
