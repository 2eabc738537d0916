"""Quality beside the source: KL divergence, perplexity, top-1 agreement, with the engine's FP8 activations simulated.

Read `run.evaluate_many` first.
"""

from w4afp8.evaluate.activations import Activations
from w4afp8.evaluate.run import evaluate, evaluate_many
from w4afp8.evaluate.scores import EvaluationReport

__all__ = ["Activations", "EvaluationReport", "evaluate", "evaluate_many"]
