"""The model card: what a person must know before downloading, made of recorded facts only.

A fact that nobody recorded is left out, or said to be unknown.
"""

from w4afp8.card.write import Card, write

__all__ = ["Card", "write"]
