"""The public names of exfm.components, and the modules that define them."""

from exfm.config.component_field import ComponentField as ComponentField
from exfm.config.component_field import ComponentSpec as ComponentSpec
from exfm.errors import NotYetError as NotYetError
from exfm.errors import RowsRemovedError as RowsRemovedError
from exfm.errors import suggestion as suggestion
from exfm.interfaces.backbone import BackboneInputs as BackboneInputs
from exfm.interfaces.backbone import SequenceShape as SequenceShape
from exfm.interfaces.component import Component as Component
from exfm.interfaces.jagged import JaggedSequence as JaggedSequence
from exfm.interfaces.sequence_encoder import EncoderInputs as EncoderInputs

__all__: list[str]
