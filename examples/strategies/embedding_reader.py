"""A label adapter over the teacher's embedding. Legend: B examples, E and R widths of embedding and representation."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

import exfm
from exfm.layers import soft_label_loss
from exfm.transfer import StudentOutput, StudentSpec, TeacherOutput, TeacherSpec, TransferConfig


class Reader(exfm.DistillationStrategy):
    """Fresh labels teach a linear map of the embedding to correct the teacher's logit; a head learns the result."""

    name = "reader"
    requires = frozenset({"embedding"})

    def __init__(self, config: TransferConfig, student: StudentSpec, teacher: TeacherSpec) -> None:
        super().__init__(config, student, teacher)
        assert teacher.embedding_dim is not None
        self.heads = nn.ModuleDict({f"task_{task}": student.new_head() for task in self.tasks})
        self.readers = nn.ModuleDict({f"task_{task}": nn.Linear(teacher.embedding_dim, 1) for task in self.tasks})
        for parameter in self.readers.parameters():
            nn.init.zeros_(parameter)

    def _logit(self, task: str, teacher: TeacherOutput) -> Tensor:
        reader = self.readers[f"task_{task}"]
        assert isinstance(reader, nn.Linear) and teacher.embedding is not None
        correction_B: Tensor = reader(teacher.embedding.detach().to(reader.weight.dtype)).squeeze(1)
        return teacher.probabilities[task].detach().logit(1e-6) + correction_B

    def adapter_optimizer(self) -> torch.optim.Optimizer:
        """Adam, of the readers alone."""
        return torch.optim.Adam(self.readers.parameters(), lr=1e-3)

    def adapter_loss(self, teacher: TeacherOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of the corrected logit and the label, over hits; no term reaches a reader without both."""
        loss = torch.zeros((), requires_grad=True)
        for task, hit_B in teacher.hit.items():
            if task in labels and hit_B.any():
                logit_B = self._logit(task, teacher)[hit_B]
                label_B = labels[task][hit_B].to(logit_B.dtype)
                weight_B = torch.ones_like(logit_B) if teacher.weight is None else teacher.weight[hit_B]
                loss = loss + cross_entropy(logit_B, label_B, weight_B, reduction="sum") / weight_B.sum()
        return loss

    def adapt(self, teacher: TeacherOutput) -> TeacherOutput:
        """The teacher's output with corrected probabilities (B,)."""
        return replace(teacher, probabilities={t: self._logit(t, teacher).sigmoid().detach() for t in teacher.hit})

    def loss(self, student: StudentOutput, teacher: TeacherOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of each task's head on the representation (B, R) and the corrected label."""
        soft = self.adapt(teacher).probabilities
        logit = {task: self.heads[f"task_{task}"](student.representation_BR) for task in soft}
        terms = [soft_label_loss(logit[task], soft[task], teacher.hit[task], teacher.weight) for task in soft]
        return torch.stack(terms).sum()
