"""w4afp8: turn a DeepSeek-class FP8 checkpoint into a proven 4-bit checkpoint for Hopper GPUs.

Read `pipeline.py` first; docs/house.md shows the floors.
"""

from ._version import __version__

__all__ = ["__version__"]
