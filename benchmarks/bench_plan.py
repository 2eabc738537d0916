"""What the default recipe plans for DeepSeek-R1 on a CPU, from the shapes that its config promises; no weights needed.

python benchmarks/bench_plan.py
"""

from __future__ import annotations

from harness import record
from w4afp8 import families, formats, quantize
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.convert import resources
from w4afp8.convert.plan_quantize import make_plan
from w4afp8.families._inventory import take_inventory
from w4afp8.families._spec import Dimensions
from w4afp8.recipes._load import load
from w4afp8.synthetic import IN_FP8

R1 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "first_k_dense_replace": 3, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5,
    "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "num_nextn_predict_layers": 1, "max_position_embeddings": 163840,
}  # fmt: skip


def main() -> None:
    family = families.of(R1)
    dimensions = family.dimensions(R1)
    assert isinstance(dimensions, Dimensions)
    specs: dict[str, TensorSpec] = {}
    for expected in family.expected(dimensions).values():
        if expected.matrix and expected.role in IN_FP8:
            parts = formats.get("deepseek_fp8").specs(expected.stem, *expected.shape)
        else:
            parts = [TensorSpec(expected.name, "BF16", expected.shape)]
        specs |= {part.name: part for part in parts}
    recipe, method = quantize.resolve(load("balanced"))
    plan = make_plan(family, dimensions, R1, take_inventory(family, dimensions, specs), recipe)
    needs = resources.estimate(plan, method, recipe.calibration.tokens, recipe.calibration.sequence)
    record(
        "plan",
        {
            "model": "DeepSeek-R1",
            "tensors": len(specs),
            "source_bytes": sum(spec.span_bytes for spec in specs.values()),
            "output_bytes": plan.total_bytes,
            "peak_memory_bytes": needs.peak,
            "phase": needs.peak_phase,
            "calibration_tokens": recipe.calibration.tokens,
        },
    )


if __name__ == "__main__":
    main()
