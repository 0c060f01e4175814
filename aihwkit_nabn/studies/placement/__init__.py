"""Which layers to keep digital so that the loss stays within a bound, at the fewest digital multiplications."""

from aihwkit_nabn.studies.placement.study import PlacementStudy

__all__ = ["PlacementStudy"]
