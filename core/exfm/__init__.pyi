"""The public names of exfm, and the modules that define them."""

from exfm import components as components
from exfm import events as events
from exfm import launch as launch
from exfm import layers as layers
from exfm import parallel as parallel
from exfm import schema as schema
from exfm import sources as sources
from exfm import transfer as transfer
from exfm.comparison.compare import compare as compare
from exfm.config.loading import Experiment as Experiment
from exfm.config.loading import load_experiment as load_experiment
from exfm.errors import ConfigError as ConfigError
from exfm.errors import RunError as RunError
from exfm.interfaces.backbone import Backbone as Backbone
from exfm.interfaces.component import ComponentConfig as ComponentConfig
from exfm.interfaces.data_source import DataSource as DataSource
from exfm.interfaces.distillation_strategy import DistillationStrategy as DistillationStrategy
from exfm.interfaces.launcher import Launcher as Launcher
from exfm.interfaces.metric import Metric as Metric
from exfm.interfaces.metric import MetricRows as MetricRows
from exfm.interfaces.parallel_plan import ParallelPlan as ParallelPlan
from exfm.interfaces.parameter_strategy import ParameterStrategy as ParameterStrategy
from exfm.interfaces.sequence_encoder import SequenceEncoder as SequenceEncoder
from exfm.interfaces.task_head import TaskHead as TaskHead
from exfm.interfaces.teacher_input import TeacherInput as TeacherInput
from exfm.interfaces.tracker import Tracker as Tracker
from exfm.interfaces.transfer_strategy import TransferStrategy as TransferStrategy
from exfm.registry.hooks import LazyComponent as LazyComponent
from exfm.registry.hooks import hookimpl as hookimpl
from exfm.result.run import open_run as open_run
from exfm.result.run import run as run

__all__: list[str]
__version__: str
