"""What the tests of the command line share; the fixture `w4afp8` runs it."""

from __future__ import annotations

Outcome = tuple[int, str, str]
FEW = ("--set", "calibration.tokens=128", "--set", "calibration.sequence=32", "--set", "output.shard_gb=0.0002",
       "--recipe", "rtn")  # fmt: skip
