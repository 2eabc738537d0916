"""Proving a checkpoint: structure, values, the source beside it, and the product that an engine will compute.

Imports neither quantize nor convert, so that no mistake is shared.  Read `run.validate` first.
"""

from w4afp8.validate.findings import Check, Problem, ValidationReport
from w4afp8.validate.run import validate

__all__ = ["Check", "Problem", "ValidationReport", "validate"]
