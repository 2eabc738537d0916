"""What a run will need, computed from headers: disk, and memory phase by phase.

The peak is the largest phase, not a sum: attention, routing and experts never hold their working memory together.
`benchmarks/bench_memory.py` measures the promise.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from w4afp8.convert.plan import Plan
from w4afp8.errors import ResourceError, raise_all
from w4afp8.families._spec import Dimensions
from w4afp8.model import attention
from w4afp8.model.feedforward import rows_per_piece
from w4afp8.quantize._layer import TOP_UP_TOKENS
from w4afp8.quantize._method import Method

FLOAT = 4
RAW = 2  # a matrix is read as stored, at most 16 bits an element, before it is widened
# The busiest expert of a layer is taken to see this multiple of the mean.
BUSIEST_EXPERT = 1.25


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes; `phases` says which step needs how much beside `resident`."""

    resident: int  # the program itself, as it stands now
    phases: dict[str, int]
    output: int
    state: int
    remedy: str = "lower calibration.tokens"  # where memory is short

    @property
    def peak(self) -> int:
        return self.resident + max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda phase: self.phases[phase])

    @property
    def disk(self) -> int:
        return self.output + self.state


def estimate(plan: Plan, method: Method, tokens: int, sequence: int) -> Needs:
    """The needs of a run over `tokens` calibration tokens."""
    d = plan.dimensions
    assert isinstance(d, Dimensions)  # a plan to quantize: the family has a forward pass
    states = tokens * d.hidden * FLOAT
    routing = tokens * (d.experts * FLOAT + d.experts_per_token * 12)
    expert = 3 * d.hidden * d.expert_intermediate * FLOAT
    rows = int(min(tokens, max(TOP_UP_TOKENS, BUSIEST_EXPERT * tokens * d.experts_per_token / d.experts)))
    # A layer keeps its states and their norm; an expert its weights and inputs while the next one's are read.
    layer = 2 * states + routing + d.experts * d.hidden * FLOAT + expert * d.shared_experts * 2 // 3
    measuring = _piece(rows, d.hidden, d.expert_intermediate, 3 * (d.hidden + d.expert_intermediate))
    dense = _piece(tokens, d.hidden, d.dense_intermediate, d.hidden + 2 * d.dense_intermediate)
    phases = {
        "embedding": states + d.vocabulary * d.hidden * RAW,
        "attention": states + _attention_weights(d) * FLOAT + attention.working_bytes(d, sequence),
        "dense mlp": 2 * states + 3 * d.hidden * d.dense_intermediate * FLOAT + dense,
        "routing": 2 * states + 4 * routing,
        "experts": layer + 2 * expert + 2 * rows * d.hidden * FLOAT + max(measuring, method.statistics_bytes(d, rows)),
    }  # fmt: skip
    if d.mtp_layers:
        phases["mtp entry"] = 2 * states + 2 * d.hidden * d.hidden * (FLOAT + RAW) + d.vocabulary * d.hidden * RAW
    resident = psutil.Process().memory_info().rss
    return Needs(resident, phases, output=plan.total_bytes, state=2 * states)


def _piece(rows: int, hidden: int, width: int, floats_per_row: int) -> int:
    """What one piece of a feed-forward holds."""
    return min(rows, rows_per_piece(hidden, width)) * floats_per_row * FLOAT


def _attention_weights(d: Dimensions) -> int:
    query = d.heads * d.query_head
    q = d.q_lora * (d.hidden + query) if d.q_lora else query * d.hidden
    return (
        q
        + d.hidden * (d.kv_lora + d.rope_dims)
        + d.heads * (d.kv_lora * (d.nope + d.value_head) + d.value_head * d.hidden)
    )


def check(needs: Needs, out: Path) -> None:
    """Raises: ResourceError when disk or memory is short, both at once.

    What an unfinished run has written already is not asked for again.
    """
    place = next(p for p in (out, *out.absolute().parents) if p.exists())
    free, available = shutil.disk_usage(place).free, psutil.virtual_memory().available
    problems = []
    written = sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) if out.is_dir() else 0
    if needs.disk - written > free:
        problems.append(
            f"disk: the output takes {human(needs.disk - written)}, {place} has {human(free)} free; "
            "choose another -o or make room"
        )
    if needs.peak - needs.resident > available:
        problems.append(
            f"memory: the phase '{needs.peak_phase}' takes {human(needs.peak - needs.resident)}, "
            f"{human(available)} are available; {needs.remedy}"
        )
    raise_all(problems, ResourceError, "this machine is too small for the plan")


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h


def return_freed_memory() -> None:
    """Make glibc hand large freed tensors back at once, and keep small ones at hand.

    Left to itself its threshold grows with every large tensor that is freed, and the peak with it.
    """
    _mallopt({M_MMAP_THRESHOLD: 1 << 20, M_TRIM_THRESHOLD: 16 << 20})


def keep_freed_memory() -> None:
    """Make glibc give freed tensors to the next ones, whichever thread asks: new pages cost more than reading does."""
    _mallopt({M_MMAP_THRESHOLD: 1 << 30, M_TRIM_THRESHOLD: 1 << 30, M_ARENA_MAX: 1})


def _mallopt(settings: Mapping[int, int]) -> None:
    try:
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in settings.items():
            libc.mallopt(parameter, value)
    except (OSError, AttributeError):
        return  # another libc: the peak may then be higher, or the work slower, than planned


def human(count: float) -> str:
    """Bytes for people: 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def peak_resident_bytes() -> int:
    """The process's highest resident memory so far (Linux: VmHWM), or 0 where the system does not say."""
    status = Path(f"/proc/{os.getpid()}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
