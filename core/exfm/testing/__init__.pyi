"""The public names of the compliance kit, and the modules that define them."""

from exfm.testing.backbone import BackboneTests as BackboneTests
from exfm.testing.component import ComponentTests as ComponentTests
from exfm.testing.data_source import DataSourceTests as DataSourceTests
from exfm.testing.distillation_strategy import DistillationStrategyTests as DistillationStrategyTests
from exfm.testing.examples import Examples as Examples
from exfm.testing.examples import random_examples as random_examples
from exfm.testing.isolation import IsolatedRegistry as IsolatedRegistry
from exfm.testing.launcher import LauncherTests as LauncherTests
from exfm.testing.metric import MetricTests as MetricTests
from exfm.testing.parallel_plan import ParallelPlanTests as ParallelPlanTests
from exfm.testing.parameter_strategy import ParameterStrategyTests as ParameterStrategyTests
from exfm.testing.sequence_encoder import SequenceEncoderTests as SequenceEncoderTests
from exfm.testing.task_head import TaskHeadTests as TaskHeadTests
from exfm.testing.teacher_input import TeacherInputTests as TeacherInputTests
from exfm.testing.tracker import TrackerTests as TrackerTests

__all__: list[str]
