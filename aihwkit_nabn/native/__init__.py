"""Functions in C, compiled at installation where there is a compiler; elsewhere torch does the same.

``NABN_NATIVE=0`` switches them off. `tools/compile_native.py` compiles them.
"""

from aihwkit_nabn.native.alignment import align_in_place
from aihwkit_nabn.native.converters import CHUNK, Numbers, Readout, read_out, to_levels
from aihwkit_nabn.native.library import is_available, is_parallel, why_not
from aihwkit_nabn.native.moments import channel_moments
from aihwkit_nabn.native.tensors import check_runs, fits, is_compiled, is_recorded

__all__ = [
    "CHUNK",
    "Numbers",
    "Readout",
    "align_in_place",
    "channel_moments",
    "check_runs",
    "fits",
    "is_available",
    "is_compiled",
    "is_parallel",
    "is_recorded",
    "read_out",
    "to_levels",
    "why_not",
]
