"""One file per idea. Importing this package registers every method that ropepatch ships."""

from ropepatch.methods import base_change as base_change
from ropepatch.methods import giraffe as giraffe
from ropepatch.methods import linear as linear
from ropepatch.methods import llama3 as llama3
from ropepatch.methods import log_buckets as log_buckets
from ropepatch.methods import longrope as longrope
from ropepatch.methods import ntk as ntk
from ropepatch.methods import proportional as proportional
from ropepatch.methods import yarn as yarn
from ropepatch.methods.base import AlibiGeometry as AlibiGeometry
from ropepatch.methods.base import Method as Method
from ropepatch.methods.base import RelativeGeometry as RelativeGeometry
from ropepatch.methods.base import RotaryFrequencies as RotaryFrequencies
from ropepatch.methods.base import RotaryGeometry as RotaryGeometry
from ropepatch.methods.registry import alibi_slopes as alibi_slopes
from ropepatch.methods.registry import make_method as make_method
from ropepatch.methods.registry import methods_for as methods_for
from ropepatch.methods.registry import register_method as register_method
from ropepatch.methods.registry import rotary_frequencies as rotary_frequencies
