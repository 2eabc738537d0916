"""Bytes on disk: safetensors and json, read lazily and written atomically.  Knows no arithmetic."""
