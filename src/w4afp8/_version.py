"""The tool's version: part of every output's fingerprint."""

__version__ = "0.1.0"
