"""Does memory follow the plan?  Peak resident memory of whole runs beside what the plan promised from headers.

    python benchmarks/bench_memory.py

A generated checkpoint, then the same with eight times the layers, then with sixteen times the experts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import MINIATURE, record
from w4afp8.synthetic import write_checkpoint

SMALL: dict[str, Any] = {
    "model_type": "deepseek_v3", "vocab_size": 2048, "hidden_size": 1024, "intermediate_size": 2048,
    "moe_intermediate_size": 256, "num_hidden_layers": 2, "first_k_dense_replace": 1, "n_routed_experts": 8,
    "n_shared_experts": 1, "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5,
    "num_attention_heads": 8, "q_lora_rank": 256, "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32,
    "v_head_dim": 64, "num_nextn_predict_layers": 0, "max_position_embeddings": 4096,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "eight times the layers": {"num_hidden_layers": 16, "first_k_dense_replace": 8},
    "sixteen times the experts": {"n_routed_experts": 128},
}
# One round of descent: it is walked in the same memory as four, in a quarter of the time.
SETTINGS = ("calibration.tokens=16384", "method.options.rounds=0", "method.options.sweeps=1")


def main() -> None:
    base = 0
    for name, change in VARIANTS.items():
        with tempfile.TemporaryDirectory() as scratch:
            source, out = Path(scratch) / "source", Path(scratch) / "out"
            write_checkpoint(source, {**SMALL, **change}, seed=1, tokenizer_from=MINIATURE)
            command = [sys.executable, "-m", "w4afp8.cli", "quantize", "--model", str(source), "-o", str(out), "--json"]
            command += [word for setting in SETTINGS for word in ("--set", setting)]
            plan = json.loads(subprocess.run([*command, "--dry-run"], check=True, capture_output=True).stdout)
            subprocess.run(command, check=True, capture_output=True)
            events = [json.loads(line) for line in (out / "w4afp8" / "run.jsonl").read_text().splitlines()]
        peak = events[-1]["peak_rss_bytes"]
        base = base or peak
        record(
            "memory",
            {
                "variant": name,
                "planned_bytes": plan["peak_memory_bytes"],
                "phase": plan["peak_phase"],
                "measured_bytes": peak,
                "measured_over_planned": peak / plan["peak_memory_bytes"],
                "measured_over_base": peak / base,
                "phases": plan["memory_phases"],
            },
        )


if __name__ == "__main__":
    main()
