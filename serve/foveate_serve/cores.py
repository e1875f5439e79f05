"""The count of cores that scripts import from here; `foveate_runtime.cores` has it."""

from foveate_runtime.cores import count_cores

__all__ = ["count_cores"]
