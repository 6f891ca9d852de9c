"""Transfer strategies with one thing wrong each, and the test of the kit that says so."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from exfm import PartShape, TransferStrategy
from exfm.testing import TransferStrategyTests
from tests.testing.sound import failed


class Sound(TransferStrategy):
    """Nothing is wrong: each task has a head that learns the teacher's predictions."""

    name = "sound"

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.heads = nn.ModuleDict({task: student.new_head() for task in self.tasks})

    def loss(self, student, supervision, labels):
        return sum(self.term(student, supervision, labels, task) for task in supervision.hit)

    def term(self, student, supervision, labels, task):
        soft_B, hit_B = supervision.probabilities[task].detach(), supervision.hit[task]
        loss_B = bce(self.heads[task](student.representation_BR), soft_B, reduction="none")
        return torch.where(hit_B, loss_B, 0).sum() / max(len(loss_B), 1)


class SoundAdapter(Sound):
    """Nothing is wrong: a number for each task, trained by an optimizer of its own, corrects the teacher."""

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.shifts = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in self.tasks})

    def own_optimizer(self):
        return torch.optim.Adam(self.shifts.values(), lr=0.1)

    def own_loss(self, supervision, labels):
        loss = torch.zeros((), requires_grad=True)
        for task, hit_B in supervision.hit.items():
            if task in labels and hit_B.any():
                loss = loss + bce(self.adapted(supervision, task)[hit_B], labels[task][hit_B])
        return loss

    def adapted(self, supervision, task):
        return supervision.probabilities[task].detach().logit(1e-6) + self.shifts[task]

    def term(self, student, supervision, labels, task):
        loss_B = bce(
            self.heads[task](student.representation_BR), self.target(supervision, task).sigmoid(), reduction="none"
        )
        return torch.where(supervision.hit[task], loss_B, 0).sum() / max(len(loss_B), 1)

    def target(self, supervision, task):
        return self.adapted(supervision, task).detach()


class SoundEmbedding(Sound):
    """Nothing is wrong: it learns the embedding, and says what it needs."""

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        if not teacher.embedding_dim:
            raise ValueError("models.fm.supervision.embedding is none")
        self.map = nn.Linear(student.representation_dim, teacher.embedding_dim)

    def loss(self, student, supervision, labels):
        hit_B = torch.stack(list(supervision.hit.values())).any(0)
        target_BE = torch.where(hit_B.unsqueeze(1), supervision.embedding.detach(), 0)
        loss_B = (self.map(student.representation_BR) - target_BE).square().mean(1)
        return super().loss(student, supervision, labels) + torch.where(hit_B, loss_B, 0).sum() / max(len(hit_B), 1)


class SoundParts(Sound):
    """Nothing is wrong: one table is added through a map, the encoder is taken over once."""

    reads_parts = True

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        rows, width = teacher.part("table/items").tensors["weight"]
        self.register_buffer("taken", torch.zeros((), dtype=torch.bool))
        self.added = Added(rows, width, student.embedding_dim)

    def teacher_parts(self):
        return ("table/items", *(() if self.taken else ("sequence_encoder/history",)))

    def table_offsets(self):
        return {"items": self.added}

    def refresh(self, parts):
        self.taken.fill_(True)
        self.added.known.copy_(parts["table/items"]["weight"])
        return {part: tensors for part, tensors in parts.items() if part != "table/items"}


class Added(nn.Module):
    def __init__(self, rows, width, dim):
        super().__init__()
        self.register_buffer("known", torch.zeros(rows, width), persistent=False)
        self.map = nn.Linear(width, dim, bias=False)

    def forward(self, rows):
        return self.map(self.known[rows])


class SaysNotThatItReads(SoundParts):
    """Its teacher's snapshots are not kept for it, and what parts there are it is not told."""

    reads_parts = False

    def __init__(self, config, student, teacher):
        parts = {"table/items": PartShape({"weight": (10, 6)}, "items")}
        super().__init__(config, student, replace(teacher, parts=parts))


class ReadsWhatIsNotThere(SoundParts):
    def frozen_parts(self):
        return ("table/itms",)


class WritesOtherShapes(SoundParts):
    def refresh(self, parts):
        return super().refresh(parts) | {"table/items": parts["table/items"]}


class WritesIntoParts(SoundParts):
    def refresh(self, parts):
        for tensor in parts["table/items"].values():
            tensor.mul_(0.5)
        return super().refresh(parts)


class AddsOtherWidths(SoundParts):
    def table_offsets(self):
        return {"items": nn.Sequential(self.added, nn.Unflatten(1, (1, 4)), nn.AdaptiveAvgPool1d(3), nn.Flatten(1))}


class RemembersTheFirstPartsOnly(SoundParts):
    """After an interruption it takes the second window's for the first."""

    first = None

    def refresh(self, parts):
        self.first = parts["table/items"] if self.first is None else self.first
        return super().refresh({**parts, "table/items": self.first})


class CorrectsLogits(SoundAdapter):
    def corrected(self, supervision):
        return {task: self.adapted(supervision, task).detach() + 30 for task in supervision.hit}


class CorrectsWithGradients(SoundAdapter):
    def corrected(self, supervision):
        return {task: self.adapted(supervision, task).sigmoid() for task in supervision.hit}


class OneElement(Sound):
    def loss(self, student, supervision, labels):
        return super().loss(student, supervision, labels).unsqueeze(0)


class AlwaysFloat(Sound):
    def loss(self, student, supervision, labels):
        return super().loss(student, supervision, labels).float()


class NeedsLabels(Sound):
    def term(self, student, supervision, labels, task):
        return super().term(student, supervision, labels, task) + 0 * labels[task].sum()


class NeedsEveryTask(Sound):
    def loss(self, student, supervision, labels):
        return sum(self.term(student, supervision, labels, task) for task in self.tasks)


class MasksByZero(Sound):
    def term(self, student, supervision, labels, task):
        soft_B = supervision.probabilities[task].detach() * supervision.hit[task]
        return bce(self.heads[task](student.representation_BR), soft_B)


class CountsEveryExample(Sound):
    """The mean that it keeps is of misses too."""

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.register_buffer("mean", torch.zeros(()))

    def loss(self, student, supervision, labels):
        self.mean += sum(soft.detach().sum() for soft in supervision.probabilities.values())
        return super().loss(student, supervision, labels)


class MeanOverHits(Sound):
    def term(self, student, supervision, labels, task):
        hit_B = supervision.hit[task]
        return super().term(student, supervision, labels, task) * len(hit_B) / hit_B.sum().clamp(min=1)


class ByPlace(Sound):
    def term(self, student, supervision, labels, task):
        soft_B, hit_B = supervision.probabilities[task].detach(), supervision.hit[task]
        loss_B = bce(self.heads[task](student.representation_BR), soft_B, reduction="none")
        return torch.where(hit_B, loss_B * torch.arange(len(loss_B), device=loss_B.device), 0).sum() / max(
            len(loss_B), 1
        )


class TeacherLearns(SoundEmbedding):
    def loss(self, student, supervision, labels):
        hit_B = torch.stack(list(supervision.hit.values())).any(0)
        loss_B = (self.map(student.representation_BR) * supervision.embedding).mean(1)
        return super().loss(student, supervision, labels) - torch.where(hit_B, loss_B, 0).sum() / max(len(hit_B), 1)


class OnTheServingHead(Sound):
    def term(self, student, supervision, labels, task):
        soft_B, hit_B = supervision.probabilities[task].detach(), supervision.hit[task]
        loss_B = bce(student.logits[task], soft_B, reduction="none")
        direct = torch.where(hit_B, loss_B, 0).sum() / max(len(loss_B), 1)
        return super().term(student, supervision, labels, task) + direct


class SpareParameter(Sound):
    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.spare = nn.Parameter(torch.ones(3))


class TeachesItself(Sound):
    def term(self, student, supervision, labels, task):
        student = type(student)(student.representation_BR.detach(), student.logits)
        return super().term(student, supervision, labels, task)


class KeepsAServingHead(Sound):
    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.serving = student.new_head.__self__.heads[0]


class Hooks(Sound):
    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        student.new_head.__self__.trunk.register_forward_hook(lambda module, inputs, output: None)


class AddsAModule(Sound):
    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        student.new_head.__self__.trunk.distillation = nn.Identity()


class TeachersNames(Sound):
    def term(self, student, supervision, labels, task):
        return super().term(student, supervision, labels, self.teacher_tasks[task])


class WritesIntoSupervision(Sound):
    def term(self, student, supervision, labels, task):
        supervision.probabilities[task].detach().clamp_(0.4, 0.6)
        return super().term(student, supervision, labels, task)


class OtherInTraining(Sound):
    def loss(self, student, supervision, labels):
        return super().loss(student, supervision, labels) * (2 if self.training else 1)


class RemembersOutsideItsState(Sound):
    batches = 0

    def loss(self, student, supervision, labels):
        self.batches += 1
        return super().loss(student, supervision, labels) / self.batches


class StaysOnTheCPU(Sound):
    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.register_buffer("one", torch.ones((), device="cpu"))


class LosesDigits(Sound):
    def term(self, student, supervision, labels, task):
        layer = self.heads[task][0]
        logit_B = (student.representation_BR + 10000) @ layer.weight[0] - 10000 * layer.weight.sum() + layer.bias[0]
        loss_B = bce(logit_B, supervision.probabilities[task].detach().to(logit_B.dtype), reduction="none")
        loss = torch.where(supervision.hit[task], loss_B, 0).sum() / max(len(loss_B), 1)
        return loss.to(student.representation_BR.dtype)


class AdapterLearnsFromTheStudent(SoundAdapter):
    def target(self, supervision, task):
        return self.adapted(supervision, task)


class OwnLossReachesTheHeads(SoundAdapter):
    def own_loss(self, supervision, labels):
        loss = super().own_loss(supervision, labels)
        return loss * (1 + sum(p.sum() for p in self.heads.parameters()))


class GlidesOn(SoundAdapter):
    """Where there is no label its gradient is zero, and Adam goes on by its momentum."""

    def own_loss(self, supervision, labels):
        return super().own_loss(supervision, labels) + 0 * sum(self.shifts.values())


class NeverSteps(SoundAdapter):
    def own_optimizer(self):
        return torch.optim.SGD(self.shifts.values(), lr=0.0)


class TakesAnyTeacher(SoundEmbedding):
    def __init__(self, config, student, teacher):
        if not teacher.embedding_dim:
            teacher = type(teacher)(teacher.name, teacher.tasks, 5)
        super().__init__(config, student, teacher)


class HeadsFromASet(Sound):
    """Its heads are made in a set's order, which differs from process to process."""

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.heads = nn.ModuleDict((task, student.new_head()) for task in {str(task) for task in self.tasks})


class SeedsItself(Sound):
    def __init__(self, config, student, teacher):
        torch.manual_seed(7)
        super().__init__(config, student, teacher)


class SetsThreads(Sound):
    def loss(self, student, supervision, labels):
        torch.set_num_threads(1)
        return super().loss(student, supervision, labels)


class KeepsItsLoss(Sound):
    def loss(self, student, supervision, labels):
        loss = super().loss(student, supervision, labels)
        self.log = lambda: loss
        return loss

    def __deepcopy__(self, memo):
        self.log = None
        copied = type(self).__new__(type(self))
        copied.__dict__.update(deepcopy(self.__dict__, memo))
        return copied


class MadeOnTheCPU(Sound):
    def term(self, student, supervision, labels, task):
        soft_B, hit_B = supervision.probabilities[task].detach(), supervision.hit[task]
        loss_B = bce(self.heads[task](student.representation_BR), soft_B, reduction="none")
        return torch.where(hit_B, loss_B, torch.zeros(len(loss_B))).sum() / max(len(loss_B), 1)


class KeepsLabels(SoundAdapter):
    """Where it has seen a label, it takes that for what the teacher says."""

    known: Any = None

    def own_loss(self, supervision, labels):
        self.known = {task: label_B.tolist() for task, label_B in labels.items()}
        return super().own_loss(supervision, labels)

    def target(self, supervision, task):
        logit_B = super().target(supervision, task)
        known = (self.known or {}).get(task, [])
        return logit_B + logit_B.new_tensor(known) if len(known) == len(logit_B) else logit_B


class CorrectsByLabels(SoundAdapter):
    known: Any = None

    def loss(self, student, supervision, labels):
        self.known = {task: label_B.tolist() for task, label_B in labels.items()}
        return super().loss(student, supervision, labels)

    def corrected(self, supervision):
        return {task: hit_B.new_tensor(self.known[task]).to(hit_B) for task, hit_B in supervision.hit.items()}


BROKEN: dict[type[Sound], dict[str, str]] = {
    HeadsFromASet: {"names_do_not_decide": "go through self.tasks in order, never through a set"},
    SeedsItself: {"the_seed_is_the_runs": "its constructor calls torch.manual_seed"},
    SetsThreads: {"settings_of_the_process_are_left_alone": "SetsThreads sets torch's number of threads to 1"},
    KeepsItsLoss: {"a_batch_leaves_nothing_behind": "of a batch that is over, the result of aten."},
    MadeOnTheCPU: {"runs_on_the_students_device": "where is given a tensor on the CPU and one on the student's device"},
    KeepsLabels: {"labels_are_learned_by_a_step_alone": "the loss of a batch depends on the labels that own_loss has"},
    CorrectsByLabels: {"labels_are_learned_by_a_step_alone": "corrected() of 'click' depends on labels"},
    OneElement: {"loss_is_a_finite_scalar": "the loss is (1,) and not a scalar"},
    AlwaysFloat: {"loss_is_a_finite_scalar": "student and strategy are torch.float64, the loss is torch.float32"},
    NeedsLabels: {"what_is_not_known_is_left_out": "click"},
    NeedsEveryTask: {"what_is_not_known_is_left_out": "buy"},
    MasksByZero: {
        "loss_is_a_finite_scalar": "of 0 examples, not finite: the loss",
        "a_batch_of_misses_teaches_nothing": "in a batch of misses it is not zero: the loss",
        "loss_is_a_mean_over_the_batch": "three misses more",
    },
    CountsEveryExample: {"a_miss_changes_nothing": "its mean afterwards depends on"},
    MeanOverHits: {"loss_is_a_mean_over_the_batch": "three misses more"},
    ByPlace: {"order_of_examples_does_not_matter": "the loss, of the same examples in reverse order"},
    TeacherLearns: {"teacher_gets_no_gradient": "a gradient of the loss reaches the supervision; detach it"},
    OnTheServingHead: {"serving_heads_are_left_to_the_labels": "not zero is the loss's gradient of"},
    SpareParameter: {"every_part_learns": "no gradient reaches its spare"},
    TeachesItself: {"every_part_learns": "no gradient reaches the student's trunk.weight"},
    KeepsAServingHead: {
        "nothing_is_left_in_the_student": "it holds parameters of the student",
        "every_part_learns": "no gradient reaches its serving.0.weight",
    },
    Hooks: {"nothing_is_left_in_the_student": "it left a hook on the student's trunk"},
    AddsAModule: {"nothing_is_left_in_the_student": "it left trunk.distillation in the student"},
    TeachersNames: {"tasks_of_other_names": "teacher_click"},
    WritesIntoSupervision: {"inputs_are_left_alone": "the probabilities of click were changed in place"},
    OtherInTraining: {"runs_repeat": "the loss, in training and in evaluation mode"},
    RemembersOutsideItsState: {"saved_state_is_the_whole_state": "the loss, of state loaded into"},
    StaysOnTheCPU: {"builds_without_memory": "built on the meta device, one took memory"},
    LosesDigits: {"low_precision_is_close": "5% allowed"},
    AdapterLearnsFromTheStudent: {
        "own_optimizer_has_a_part_of_its_own": "the loss reaches its shifts.buy, which own_optimizer() trains"
    },
    OwnLossReachesTheHeads: {
        "own_optimizer_has_a_part_of_its_own": "own loss reaches its heads.click.0.weight, which own_optim"
    },
    GlidesOn: {"own_optimizer_steps_on_labels_alone": "in a batch without labels, own_optimizer() moves shifts.buy"},
    NeverSteps: {"own_optimizer_steps_on_labels_alone": "a step of own_optimizer() moves nothing"},
    SaysNotThatItReads: {"parts_have_names_that_there_are": "reads_parts must be True"},
    ReadsWhatIsNotThere: {"parts_have_names_that_there_are": "there is no table/itms"},
    WritesOtherShapes: {"what_it_writes_has_the_students_shapes": "for table/items of shapes {'weight': (10, 4)} it"},
    WritesIntoParts: {"what_it_writes_has_the_students_shapes": "table/items weight, before it was told of them"},
    AddsOtherWidths: {"what_it_writes_has_the_students_shapes": "to table 'items', (10, 4), it adds (10, 3)"},
    RemembersTheFirstPartsOnly: {"parts_are_known_again_after_an_interruption": "in a window that was begun once"},
    CorrectsLogits: {"corrected_labels_are_probabilities": "which is no probability"},
    CorrectsWithGradients: {"corrected_labels_are_probabilities": "a gradient could reach what corrects 'click'"},
    TakesAnyTeacher: {"teacher_without_embeddings": "DID NOT RAISE"},
}


def failures(component: type[Sound], **attributes: Any) -> dict[str, str]:
    needs_embedding = issubclass(component, SoundEmbedding)
    return failed(TransferStrategyTests, {"component": component, "needs_embedding": needs_embedding} | attributes)


@pytest.mark.parametrize("component", [Sound, SoundAdapter, SoundEmbedding, SoundParts])
def test_nothing_is_wrong_with_sound_ones(component: type[Sound]) -> None:
    assert not failures(component)


@pytest.mark.parametrize("component", BROKEN, ids=lambda component: component.__name__)
def test_what_is_wrong_is_said_by_its_own_test(component: type[Sound]) -> None:
    found = failures(component)
    assert found.keys() == BROKEN[component].keys()
    for test, words in BROKEN[component].items():
        assert words in found[test]


def test_a_strategy_that_claims_to_teach_serving_heads_does() -> None:
    found = failures(Sound, teaches_serving_heads=True)
    assert found.keys() == {"serving_heads_are_left_to_the_labels"}
    assert not failures(OnTheServingHead, teaches_serving_heads=True)


def test_a_strategy_that_teaches_no_trunk_says_so() -> None:
    assert not failures(TeachesItself, teaches_trunk=False)


def test_more_tasks_than_two() -> None:
    assert not failures(SoundAdapter, tasks=("click", "buy", "share", "like"))


def test_every_test_says_what_is_required_and_why() -> None:
    tests = [name for name in dir(TransferStrategyTests) if name.startswith("test_")]
    assert len(tests) > 15 and all(getattr(TransferStrategyTests, name).__doc__ for name in tests)
