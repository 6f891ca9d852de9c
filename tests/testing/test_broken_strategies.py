"""Transfer strategies with one thing wrong each, and the test of the kit that says so."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from exfm import DistillationStrategy, ParameterStrategy
from exfm.testing import DistillationStrategyTests, ParameterStrategyTests
from exfm.transfer import AddRows, CopyPart, PartSpec, TeacherVectors
from tests.testing.sound import failed


class Sound(DistillationStrategy):
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

    def adapter_optimizer(self):
        return torch.optim.Adam(self.shifts.values(), lr=0.1)

    def adapter_loss(self, teacher, labels):
        loss = torch.zeros((), requires_grad=True)
        for task, hit_B in teacher.hit.items():
            if task in labels and hit_B.any():
                loss = loss + bce(self.adapted(teacher, task)[hit_B], labels[task][hit_B])
        return loss

    @torch.no_grad()
    def adapt(self, teacher):
        adapted = {task: self.adapted(teacher, task).sigmoid() for task in teacher.hit}
        return replace(teacher, probabilities=adapted)

    def adapted(self, supervision, task):
        return supervision.probabilities[task].detach().logit(1e-6) + self.shifts[task]

    def term(self, student, supervision, labels, task):
        loss_B = bce(
            self.heads[task](student.representation_BR), self.target(supervision, task).sigmoid(), reduction="none"
        )
        return torch.where(supervision.hit[task], loss_B, 0).sum() / max(len(loss_B), 1)

    def target(self, supervision, task):
        return self.adapted(supervision, task).detach()


class SoundContext(SoundAdapter):
    """Nothing is wrong: the correction is a linear map of a token of the student and of the teacher's age too."""

    reads_features: tuple[str, ...] = ("shop",)
    reads_age = True

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.maps = nn.ModuleDict({task: nn.Linear(student.embedding_dim + 1, 1) for task in self.tasks})

    def adapter_optimizer(self):
        return torch.optim.Adam([*self.shifts.values(), *self.maps.parameters()], lr=0.1)

    def adapted(self, supervision, task):
        context_BC = torch.cat([supervision.tokens["shop"], supervision.age_s.unsqueeze(1) / 86_400], dim=1).detach()
        return super().adapted(supervision, task) + self.maps[task](context_BC).squeeze(1)


class SaysNotThatItReadsTokens(SoundContext):
    """In a run there would be no such token."""

    reads_features: tuple[str, ...] = ()


class SoundEmbedding(Sound):
    """Nothing is wrong: it learns the embedding, and says what it needs."""

    requires = frozenset({"embedding"})

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.map = nn.Linear(student.representation_dim, teacher.embedding_dim)

    def loss(self, student, supervision, labels):
        hit_B = torch.stack(list(supervision.hit.values())).any(0)
        target_BE = torch.where(hit_B.unsqueeze(1), supervision.embedding.detach(), 0)
        loss_B = (self.map(student.representation_BR) - target_BE).square().mean(1)
        return super().loss(student, supervision, labels) + torch.where(hit_B, loss_B, 0).sum() / max(len(hit_B), 1)


class SoundParameters(ParameterStrategy):
    """Nothing is wrong: a table and a state are added through maps, the encoder is taken over once."""

    name = "sound_parameters"
    requires = frozenset({"parameters", "states"})

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        width, dim = teacher.part("table/items").tensors["weight"][1], student.embedding_dim
        self.added = nn.Sequential(nn.Linear(width, dim), nn.Tanh())
        self.state: nn.Module = nn.Linear(teacher.states["item"], dim, bias=False)

    def transfers(self):
        return [
            AddRows("items", (TeacherVectors("table_row", "items"),), self.added, keep_own_row=False),
            AddRows("items", (TeacherVectors("state", "item"),), self.state),
            CopyPart("sequence_encoder/history", "once"),
        ]


class SaysNotThatItTakesParts(SoundParameters):
    """Its teacher's snapshots are not kept for it."""

    requires = frozenset({"states"})

    def __init__(self, config, student, teacher):
        parts = {"table/items": PartSpec({"weight": (10, 6)}, "items")}
        super().__init__(config, student, replace(teacher, parts=parts))


class SaysThatItTakesStates(SoundParameters):
    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        del self.state

    def transfers(self):
        return [AddRows("items", (TeacherVectors("table_row", "items"),), self.added)]


class DeclaresNothing(SoundParameters):
    requires = frozenset()

    def __init__(self, config, student, teacher):
        ParameterStrategy.__init__(self, config, student, teacher)

    def transfers(self):
        return []


class CopiesWhatIsNotThere(SoundParameters):
    def transfers(self):
        return [*super().transfers(), CopyPart("table/itms", "once")]


class CopiesOtherShapes(SoundParameters):
    def transfers(self):
        return [*super().transfers(), CopyPart("table/items", "every_window")]


class CopiesTwice(SoundParameters):
    def transfers(self):
        return [*super().transfers(), CopyPart("sequence_encoder/history", "every_window")]


class AddsOtherWidths(SoundParameters):
    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.state: nn.Module = nn.Linear(teacher.states["item"], 3)


class AddsToAnotherTable(SoundParameters):
    def transfers(self):
        return [*super().transfers(), AddRows("shops", (TeacherVectors("state", "item"),), self.state)]


class AddsTwoKindsAtOnce(SoundParameters):
    def transfers(self):
        sources = (TeacherVectors("state", "item"), TeacherVectors("table_row", "items"))
        return [*super().transfers(), AddRows("items", sources, self.state)]


class KeepsItsProjectionElsewhere(SoundParameters):
    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.hidden = [nn.Identity()]

    def transfers(self):
        return [*super().transfers(), AddRows("items", (TeacherVectors("state", "item"),), self.hidden[0])]


class Centred(nn.Module):
    """What it makes of a vector depends on those beside it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, vector):
        return self.layer(vector - vector.mean(0))


class MapsRowsTogether(SoundParameters):
    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.state = Centred(self.state)


class DividesByLength(SoundParameters):
    """Before there is a state, it divides zero by zero."""

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.state = Normed(self.state)


class Normed(Centred):
    def forward(self, vector):
        return self.layer(vector / vector.norm(dim=-1, keepdim=True))


class SpareProjection(SoundParameters):
    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.spare = nn.Linear(2, 2)


class TwiceInTraining(Centred):
    def forward(self, vector):
        return self.layer(vector) * (2 if self.training else 1)


class ProjectsOtherwiseInTraining(SoundParameters):
    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.state = TwiceInTraining(self.state)


class TakesATeacherWithoutStates(SoundParameters):
    def __init__(self, config, student, teacher):
        super().__init__(config, student, replace(teacher, states=teacher.states or {"item": 4}))


class CorrectsLogits(SoundAdapter):
    def adapt(self, teacher):
        adapted = {task: self.adapted(teacher, task).detach() + 30 for task in teacher.hit}
        return replace(teacher, probabilities=adapted)


class CorrectsWithGradients(SoundAdapter):
    def adapt(self, teacher):
        adapted = {task: self.adapted(teacher, task).sigmoid() for task in teacher.hit}
        return replace(teacher, probabilities=adapted)


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


class ComparesExamples(Sound):
    """An example's term is less what the others' terms are: it needs the whole batch and does not say so."""

    def term(self, student, supervision, labels, task):
        soft_B, hit_B = supervision.probabilities[task].detach(), supervision.hit[task]
        logit_B = self.heads[task](student.representation_BR)
        mean = torch.where(hit_B, logit_B, 0).sum() / hit_B.sum().clamp(min=1)
        loss_B = bce(logit_B - mean.detach(), soft_B, reduction="none")
        return torch.where(hit_B, loss_B, 0).sum() / max(len(loss_B), 1)


class SaysThatItComparesExamples(ComparesExamples):
    decomposes = False


class KeepsStatistics(Sound):
    """Each process would keep those of its own rows."""

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.register_buffer("mean", torch.zeros(()))

    def loss(self, student, supervision, labels):
        self.mean += sum(soft[supervision.hit[task]].sum() for task, soft in supervision.probabilities.items()).detach()
        return super().loss(student, supervision, labels)


class KeepsSums(KeepsStatistics):
    """Nothing is wrong: the statistics of the whole batch are the same in every process."""

    def sums(self, student, supervision):
        return {"soft": sum(soft[supervision.hit[task]].sum() for task, soft in supervision.probabilities.items())}

    def loss(self, student, supervision, labels):
        self.mean += supervision.sums["soft"].to(self.mean.dtype)
        return Sound.loss(self, student, supervision, labels)


class SumsAreMeans(KeepsSums):
    """Means of processes do not add up to the mean of all."""

    def sums(self, student, supervision):
        return {"soft": super().sums(student, supervision)["soft"] / max(len(student.representation_BR), 1)}


class SaysWhenItHasStarted(Sound):
    """Nothing is wrong: the first batch sets a buffer, and needs to be whole."""

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.started: torch.Tensor
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @property
    def decomposes(self):
        return bool(self.started)

    def loss(self, student, supervision, labels):
        self.started |= torch.stack(list(supervision.hit.values())).any()
        return super().loss(student, supervision, labels)


class StartsAndDecomposes(SaysWhenItHasStarted):
    decomposes = True


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
        head: Any = self.heads[task]
        layer = head[0]
        logit_B = (student.representation_BR + 10000) @ layer.weight[0] - 10000 * layer.weight.sum() + layer.bias[0]
        loss_B = bce(logit_B, supervision.probabilities[task].detach().to(logit_B.dtype), reduction="none")
        loss = torch.where(supervision.hit[task], loss_B, 0).sum() / max(len(loss_B), 1)
        return loss.to(student.representation_BR.dtype)


class AdapterLearnsFromTheStudent(SoundAdapter):
    def target(self, supervision, task):
        return self.adapted(supervision, task)


class OwnLossReachesTheHeads(SoundAdapter):
    def adapter_loss(self, teacher, labels):
        loss = super().adapter_loss(teacher, labels)
        return loss * (1 + sum(p.sum() for p in self.heads.parameters()))


class GlidesOn(SoundAdapter):
    """Where there is no label its gradient is zero, and Adam goes on by its momentum."""

    def adapter_loss(self, teacher, labels):
        return super().adapter_loss(teacher, labels) + 0 * sum(self.shifts.values())


class AdaptsByAllHits(SoundAdapter):
    """A mean over the hits of all tasks together: which task's hits weigh how much depends on the rows."""

    def adapter_loss(self, teacher, labels):
        tasks = [task for task, hit_B in teacher.hit.items() if task in labels and hit_B.any()]
        terms = [
            bce(self.adapted(teacher, task)[teacher.hit[task]], labels[task][teacher.hit[task]], reduction="none")
            for task in tasks
        ]
        return torch.cat(terms).mean() if terms else torch.zeros((), requires_grad=True)


class NeverSteps(SoundAdapter):
    def adapter_optimizer(self):
        return torch.optim.SGD(self.shifts.values(), lr=0.0)


class TakesAnyTeacher(SoundEmbedding):
    def __init__(self, config, student, teacher):
        if not teacher.embedding_dim:
            teacher = replace(teacher, embedding_dim=5)
        super().__init__(config, student, teacher)


class HeadsFromASet(Sound):
    """Its heads are made in a set's order, which differs from process to process."""

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.heads = nn.ModuleDict({task: student.new_head() for task in {str(task) for task in self.tasks}})


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
        self.log: Callable[[], torch.Tensor] | None = lambda: loss
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

    def adapter_loss(self, teacher, labels):
        self.known = {task: label_B.tolist() for task, label_B in labels.items()}
        return super().adapter_loss(teacher, labels)

    def target(self, supervision, task):
        logit_B = super().target(supervision, task)
        known = (self.known or {}).get(task, [])
        return logit_B + logit_B.new_tensor(known) if len(known) == len(logit_B) else logit_B


class CorrectsByLabels(SoundAdapter):
    known: Any = None

    def loss(self, student, supervision, labels):
        self.known = {task: label_B.tolist() for task, label_B in labels.items()}
        return super().loss(student, supervision, labels)

    def adapt(self, teacher):
        adapted = {task: torch.tensor(self.known[task]).double() for task in teacher.hit}
        return replace(teacher, probabilities=adapted)


BROKEN: dict[type[Any], dict[str, str]] = {
    HeadsFromASet: {"names_do_not_decide": "go through self.tasks in order, never through a set"},
    SeedsItself: {"the_seed_is_the_runs": "its constructor calls torch.manual_seed"},
    SetsThreads: {"settings_of_the_process_are_left_alone": "SetsThreads sets torch's number of threads to 1"},
    KeepsItsLoss: {"a_batch_leaves_nothing_behind": "of a batch that is over, the result of aten."},
    MadeOnTheCPU: {"runs_on_the_students_device": "where is given a tensor on the CPU and one on the student's device"},
    KeepsLabels: {"labels_are_learned_by_a_step_alone": "a batch depends on the labels that adapter_loss has"},
    CorrectsByLabels: {"labels_are_learned_by_a_step_alone": "adapt() of 'click' depends on labels"},
    OneElement: {"loss_is_a_finite_scalar": "the loss is (1,) and not a scalar"},
    AlwaysFloat: {
        "loss_is_a_finite_scalar": "student and strategy are torch.float64, the loss is torch.float32",
        "a_loss_that_decomposes_is_the_mean_over_any_split": "the loss, over two parts of a batch",
    },
    NeedsLabels: {
        "missing_labels_and_tasks_are_left_out": "click",
        "labels_that_are_not_known_are_left_out": "with 2 labels that are NaN, not finite",
    },
    NeedsEveryTask: {"missing_labels_and_tasks_are_left_out": "buy"},
    MasksByZero: {
        "loss_is_a_finite_scalar": "of 0 examples, not finite: the loss",
        "a_batch_of_misses_teaches_nothing": "in a batch of misses it is not zero: the loss",
        "loss_is_a_mean_over_the_batch": "three misses more",
    },
    CountsEveryExample: {
        "a_miss_changes_nothing": "its mean afterwards depends on",
        "a_loss_that_decomposes_is_the_mean_over_any_split": "a batch changes its mean afterwards",
    },
    MeanOverHits: {
        "loss_is_a_mean_over_the_batch": "three misses more",
        "a_loss_that_decomposes_is_the_mean_over_any_split": "the loss, over two parts of a batch",
    },
    ByPlace: {
        "order_of_examples_does_not_matter": "the loss, of the same examples in reverse order",
        "a_loss_that_decomposes_is_the_mean_over_any_split": "the loss, over two parts of a batch",
    },
    ComparesExamples: {"a_loss_that_decomposes_is_the_mean_over_any_split": "the loss, over two parts of a batch"},
    KeepsStatistics: {
        "a_loss_that_decomposes_is_the_mean_over_any_split": "a batch changes its mean afterwards: `decomposes` has to"
    },
    SumsAreMeans: {
        "a_loss_that_decomposes_is_the_mean_over_any_split": "its sums 'soft' of two parts of a batch, added"
    },
    AdaptsByAllHits: {
        "a_loss_that_decomposes_is_the_mean_over_any_split": "its adapter's loss, of two parts of a batch, each task"
    },
    StartsAndDecomposes: {
        "a_loss_that_decomposes_is_the_mean_over_any_split": "a batch changes its started afterwards"
    },
    TeacherLearns: {"teacher_gets_no_gradient": "a gradient of the loss reaches the teacher's output; detach it"},
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
        "adapter_optimizer_has_separate_parameters": "reaches its shifts.buy, which adapter_optimizer() trains"
    },
    OwnLossReachesTheHeads: {
        "adapter_optimizer_has_separate_parameters": "reaches its heads.click.0.weight, which adapter_optim"
    },
    GlidesOn: {"adapter_steps_on_labels_alone": "in a batch without labels, adapter_optimizer() moves shifts.buy"},
    NeverSteps: {"adapter_steps_on_labels_alone": "a step of adapter_optimizer() moves nothing"},
    SaysNotThatItTakesParts: {"transfers_fit_student_and_teacher": "use 'parameters', which `requires` has to say"},
    SaysThatItTakesStates: {"transfers_fit_student_and_teacher": "`requires` says 'states', which no transfer uses"},
    DeclaresNothing: {"transfers_fit_student_and_teacher": "transfers() declares none"},
    CopiesWhatIsNotThere: {"transfers_fit_student_and_teacher": "no part 'table/itms'. Did you mean 'table/items'"},
    CopiesOtherShapes: {"transfers_fit_student_and_teacher": "the teacher's rows have width 6, the student's 4"},
    CopiesTwice: {"transfers_fit_student_and_teacher": "sequence_encoder/history is copied by two transfers"},
    AddsOtherWidths: {"transfers_fit_student_and_teacher": "'items' maps (3, 4) to (3, 3), not to (3, 4)"},
    AddsToAnotherTable: {"transfers_fit_student_and_teacher": "is of rows of table 'items', and is added to 'shops'"},
    AddsTwoKindsAtOnce: {"transfers_fit_student_and_teacher": "from sources of one kind and one width"},
    KeepsItsProjectionElsewhere: {"transfers_fit_student_and_teacher": "is no module of the strategy"},
    MapsRowsTogether: {"projections_map_each_vector_by_itself": "what is added to items, alone and beside"},
    DividesByLength: {"what_is_added_is_finite": "is not finite where there is no vector yet"},
    SpareProjection: {"every_projection_learns": "no gradient reaches its spare.weight, spare.bias"},
    ProjectsOtherwiseInTraining: {"runs_repeat": "in training and in evaluation mode"},
    TakesATeacherWithoutStates: {"a_teacher_without_required_data_is_refused": "stores no state of 'item'"},
    CorrectsLogits: {"adapted_labels_are_probabilities": "which is no probability"},
    CorrectsWithGradients: {"adapted_labels_are_probabilities": "a gradient could reach the adapted labels of 'click'"},
    TakesAnyTeacher: {"a_teacher_without_required_data_is_refused": "DID NOT RAISE"},
}


def failures(component: type[Any], **attributes: Any) -> dict[str, str]:
    kit = ParameterStrategyTests if issubclass(component, ParameterStrategy) else DistillationStrategyTests
    return failed(kit, {"component": component} | attributes)


SOUND = (
    Sound,
    SoundAdapter,
    SoundContext,
    SoundEmbedding,
    SoundParameters,
    SaysThatItComparesExamples,
    KeepsSums,
    SaysWhenItHasStarted,
)


@pytest.mark.parametrize("component", SOUND)
def test_nothing_is_wrong_with_sound_ones(component: type[Any]) -> None:
    assert not failures(component)


@pytest.mark.parametrize("component", BROKEN, ids=lambda component: component.__name__)
def test_what_is_wrong_is_said_by_its_own_test(component: type[Any]) -> None:
    found = failures(component)
    assert found.keys() == BROKEN[component].keys()
    for test, words in BROKEN[component].items():
        assert words in found[test]


def test_a_strategy_that_does_not_say_what_it_reads_finds_nothing() -> None:
    assert failures(SaysNotThatItReadsTokens)["loss_is_a_finite_scalar"] == "'shop'"


def test_a_strategy_that_claims_to_teach_serving_heads_does() -> None:
    found = failures(Sound, teaches_serving_heads=True)
    assert found.keys() == {"serving_heads_are_left_to_the_labels"}
    assert not failures(OnTheServingHead, teaches_serving_heads=True)


def test_a_strategy_that_teaches_no_trunk_says_so() -> None:
    assert not failures(TeachesItself, teaches_trunk=False)


def test_more_tasks_than_two() -> None:
    assert not failures(SoundAdapter, tasks=("click", "buy", "share", "like"))


def test_every_test_says_what_is_required_and_why() -> None:
    for kit, least in ((DistillationStrategyTests, 20), (ParameterStrategyTests, 15)):
        tests = [name for name in dir(kit) if name.startswith("test_")]
        assert len(tests) > least and all(getattr(kit, name).__doc__ for name in tests)
