"""What a run, a validation and an evaluation say, for a terminal, a machine and a person's browser."""

from w4afp8.report.terminal import render_evaluation, render_validation
from w4afp8.report.write import Paths, write

__all__ = ["Paths", "render_evaluation", "render_validation", "write"]
