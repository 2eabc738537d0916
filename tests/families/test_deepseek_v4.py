"""DeepSeek-V4's names: the published Flash by its table, transformers' own tiny model, everything else an error."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from w4afp8 import families
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.errors import CheckpointError
from w4afp8.families._inventory import take_inventory
from w4afp8.families._spec import Role, expert_matrices
from w4afp8.families.deepseek_v4 import FAMILY
from w4afp8.synthetic import specs_of, style_of

# V4-Flash as formats A2 gives it.
FLASH: dict[str, Any] = {
    "model_type": "deepseek_v4", "vocab_size": 129280, "hidden_size": 4096, "moe_intermediate_size": 2048,
    "num_hidden_layers": 43, "num_attention_heads": 64, "head_dim": 512, "q_lora_rank": 1024, "o_lora_rank": 1024,
    "o_groups": 8, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 6, "num_hash_layers": 3,
    "swiglu_limit": 10.0, "hc_mult": 4, "index_n_heads": 64, "index_head_dim": 128, "index_topk": 512,
    "compress_ratios": [0, 0, *([4, 128] * 21)][:43], "num_nextn_predict_layers": 1, "scoring_func": "sqrtsoftplus",
}  # fmt: skip
# formats A2, written anew from the table: name below `layers.N.` -> (shape, shape of the FP8 scale)
A2 = {
    "attn_norm.weight": ((4096,), None), "ffn_norm.weight": ((4096,), None),
    "hc_attn_fn": ((24, 16384), None), "hc_attn_base": ((24,), None), "hc_attn_scale": ((3,), None),
    "hc_ffn_fn": ((24, 16384), None), "hc_ffn_base": ((24,), None), "hc_ffn_scale": ((3,), None),
    "attn.wq_a.weight": ((1024, 4096), (8, 32)), "attn.wq_b.weight": ((32768, 1024), (256, 8)),
    "attn.wkv.weight": ((512, 4096), (4, 32)), "attn.wo_a.weight": ((8192, 4096), (64, 32)),
    "attn.wo_b.weight": ((4096, 8192), (32, 64)), "attn.q_norm.weight": ((1024,), None),
    "attn.kv_norm.weight": ((512,), None), "attn.attn_sink": ((64,), None), "ffn.gate.weight": ((256, 4096), None),
    "ffn.shared_experts.w1.weight": ((2048, 4096), (16, 32)), "ffn.shared_experts.w3.weight": ((2048, 4096), (16, 32)),
    "ffn.shared_experts.w2.weight": ((4096, 2048), (32, 16)),
}  # fmt: skip
A2_COMPRESSOR = {
    4: {"wkv.weight": (1024, 4096), "wgate.weight": (1024, 4096), "ape": (4, 1024), "norm.weight": (512,)},
    128: {"wkv.weight": (512, 4096), "wgate.weight": (512, 4096), "ape": (128, 512), "norm.weight": (512,)},
}
A2_INDEXER = {
    "wq_b.weight": ((8192, 1024), (64, 8)), "weights_proj.weight": ((64, 4096), None),
    "compressor.wkv.weight": ((256, 4096), None), "compressor.wgate.weight": ((256, 4096), None),
    "compressor.ape": ((4, 256), None), "compressor.norm.weight": ((128,), None),
}  # fmt: skip
A2_EXPERT = {"w1.weight": ((2048, 2048), (2048, 128)), "w3.weight": ((2048, 2048), (2048, 128)),
             "w2.weight": ((4096, 1024), (4096, 64))}  # fmt: skip
A2_MTP = {
    "e_proj.weight": ((4096, 4096), (32, 32)), "h_proj.weight": ((4096, 4096), (32, 32)),
    "enorm.weight": ((4096,), None),
    "hnorm.weight": ((4096,), None), "norm.weight": ((4096,), None), "emb.tok_emb.weight": ((129280, 4096), None),
    "head.weight": ((129280, 4096), None), "hc_head_fn": ((4, 16384), None), "hc_head_base": ((4,), None),
    "hc_head_scale": ((1,), None),
}  # fmt: skip
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]]


def published() -> Shapes:
    """Every tensor of V4-Flash-Base's index with FP4 experts, from the table alone."""
    found: Shapes = {
        "embed.weight": ((129280, 4096), None), "head.weight": ((129280, 4096), None), "norm.weight": ((4096,), None),
        "hc_head_fn": ((4, 16384), None), "hc_head_base": ((4,), None), "hc_head_scale": ((1,), None),
    }  # fmt: skip
    for layer in range(44):
        prefix = "mtp.0." if layer == 43 else f"layers.{layer}."
        own: Shapes = dict(A2)
        own |= {"ffn.gate.tid2eid": ((129280, 6), None)} if layer < 3 else {"ffn.gate.bias": ((256,), None)}
        if 2 <= layer < 43:
            ratio = 4 if layer % 2 == 0 else 128
            own |= {f"attn.compressor.{n}": (s, None) for n, s in A2_COMPRESSOR[ratio].items()}
            own |= {f"attn.indexer.{n}": s for n, s in A2_INDEXER.items()} if ratio == 4 else {}
        own |= {f"ffn.experts.{e}.{n}": s for e in range(256) for n, s in A2_EXPERT.items()}
        found |= {prefix + n: s for n, s in (own | (A2_MTP if layer == 43 else {})).items()}
    return found


def header_specs(config: dict[str, Any], dtype: str = "deepseek_mxfp4") -> dict[str, TensorSpec]:
    expected = FAMILY.expected(FAMILY.dimensions(config)).values()
    return {spec.name: spec for item in expected for spec in specs_of(item, style_of(dtype))}


def published_specs() -> dict[str, TensorSpec]:
    """The headers of Flash-Base, dtypes as the table has them."""
    found = {}
    for name, (shape, scale) in published().items():
        packed = ".experts." in name
        dtype = "I64" if name.endswith("tid2eid") else "I8" if packed else "F8_E4M3" if scale else "BF16"
        found[name] = TensorSpec(name, dtype, shape)
        if scale:
            stem = name.removesuffix("weight")
            found[f"{stem}scale"] = TensorSpec(f"{stem}scale", "F8_E8M0", scale)
    return found


def test_flash_has_exactly_the_published_tensors() -> None:
    """69,189 entries in Flash-Base; 69,187 in Flash, which leaves out what the MTP block repeats."""
    specs = published_specs()
    assert len(specs) == 69_189
    items = take_inventory(FAMILY, FAMILY.dimensions(FLASH), specs)
    assert sum(len(item.tensors) for item in items.values()) == len(specs)
    packed = [i for i in items.values() if i.expected.role is Role.EXPERT]
    assert len(packed) == 33_792 and {i.format.name for i in packed if i.format} == {"deepseek_mxfp4"}
    assert {i.format.name for i in items.values() if i.format} == {"deepseek_mxfp4", "deepseek_ue8m0", "bf16"}
    for repeated in ("mtp.0.emb.tok_emb.weight", "mtp.0.head.weight"):
        del specs[repeated]
    assert len(specs) == 69_187
    take_inventory(FAMILY, FAMILY.dimensions(FLASH), specs)


def test_the_mtp_block_has_799_tensors_unquantized() -> None:
    mtp = [e for e in FAMILY.expected(FAMILY.dimensions(FLASH)).values() if e.name.startswith("mtp.0.")]
    assert len(mtp) == 799 and {e.layer for e in mtp} == {43}


# What transformers 5.23 writes where the publisher has another name (formats: A5).
PUBLISHED = (
    (r"^model\.(layers|norm)", r"\1"), (r"^model\.embed_tokens\.", "embed."), (r"^model\.hc_head\.hc_", "hc_head_"),
    (r"\.attn\.norm\.", ".attn.kv_norm."),
)  # fmt: skip


def test_transformers_tiny_model_has_the_names_we_expect(golden: Path) -> None:
    saved = json.loads((golden / "transformers_names.json").read_text())["deepseek_v4"]
    config = {"model_type": "deepseek_v4", **saved["config_args"]}
    found = {}
    for name, (_, shape) in saved["saved"].items():
        for theirs, ours in PUBLISHED:
            name = re.sub(theirs, ours, name)
        found[name] = shape
    expected = FAMILY.expected(FAMILY.dimensions(config))
    assert {name: list(item.shape) for name, item in expected.items()} == found


def test_flash_base_is_fp8_by_its_tensors() -> None:
    items = take_inventory(FAMILY, FAMILY.dimensions(FLASH), header_specs(FLASH, "deepseek_ue8m0"))
    assert {i.format.name for i in items.values() if i.format} == {"deepseek_ue8m0", "bf16"}


def test_expert_names_reach_into_the_mtp_block() -> None:
    d = FAMILY.dimensions(FLASH)
    assert expert_matrices(FAMILY, d, 5, 7)[1] == "layers.5.ffn.experts.7.w3.weight"
    assert expert_matrices(FAMILY, d, 43, 0) == tuple(f"mtp.0.ffn.experts.0.w{i}.weight" for i in (1, 3, 2))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("layers.2.attn.indexer.compressor.ape", "is missing: expected a compressor of"),
        ("layers.0.ffn.gate.tid2eid", "is missing: expected a router of"),
        ("mtp.0.ffn.experts.2.w2.weight", "is missing: expected a routed expert of"),
        ("mtp.0.enorm.weight", "is missing: expected a mtp of"),
    ],
)
def test_what_is_missing_is_named(name: str, says: str) -> None:
    specs = header_specs(SMALL)
    for gone in (name, name.replace("weight", "scale")):
        specs.pop(gone, None)
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} {says}"):
        take_inventory(FAMILY, FAMILY.dimensions(SMALL), specs)


SMALL = FLASH | {
    "vocab_size": 64, "hidden_size": 256, "moe_intermediate_size": 128, "num_hidden_layers": 4, "n_routed_experts": 3,
    "num_attention_heads": 2, "head_dim": 64, "q_lora_rank": 64, "o_lora_rank": 64, "o_groups": 2,
    "num_experts_per_tok": 2, "compress_ratios": [0, 0, 4, 128], "num_hash_layers": 1, "index_n_heads": 2,
    "index_head_dim": 32,
}  # fmt: skip


def test_a_tensor_without_a_role_is_named() -> None:
    specs = header_specs(SMALL)
    for odd in ("layers.3.attn.indexer.wq_b.weight", "model.layers.0.mlp.gate.weight"):
        specs[odd] = TensorSpec(odd, "BF16", (64, 64), "shard-7")
    with pytest.raises(CheckpointError) as caught:
        take_inventory(FAMILY, FAMILY.dimensions(SMALL), specs)
    assert "layers.3.attn.indexer.wq_b.weight (BF16 [64, 64]) in shard-7 has no role in the family" in str(caught.value)
    assert "model.layers.0.mlp.gate.weight" in str(caught.value)


def test_a_table_of_experts_holds_whole_numbers() -> None:
    specs = header_specs(SMALL)
    specs["layers.0.ffn.gate.tid2eid"] = TensorSpec("layers.0.ffn.gate.tid2eid", "BF16", (64, 2))
    with pytest.raises(CheckpointError, match=r"tid2eid \(BF16 \[64, 2\]\): expected I64 or I32 \[64, 2\]"):
        take_inventory(FAMILY, FAMILY.dimensions(SMALL), specs)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("compress_ratios", [0, 0, 4], "a list of 4 ratios"),
        ("compress_ratios", [0, 0, 4, 16], r"compress_ratios\[3\] is 16, expected 0, 4 or 128"),
        ("compress_ratios", None, "a list of 4 ratios"),
        ("o_groups", 3, "do not form 3 output groups"),
        ("scoring_func", "sigmoid", "expected 'sqrtsoftplus'"),
        ("swiglu_limit", -1, "swiglu_limit is -1"),
        ("hidden_size", 0, "hidden_size is 0"),
    ],
)
def test_what_the_rules_are_not_written_for_is_refused(field: str, value: Any, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        FAMILY.dimensions(SMALL | {field: value})


def test_the_activation_and_the_layers_without_mtp() -> None:
    d = FAMILY.dimensions(FLASH)
    assert (d.swiglu.limit, d.swiglu.alpha, d.swiglu.offset) == (10.0, 1.0, 0.0)
    without = FAMILY.without_mtp(FLASH | {"compress_ratios": [*FLASH["compress_ratios"], 0]})
    assert not any(name.startswith("mtp.") for name in FAMILY.expected(FAMILY.dimensions(without)))


def test_there_is_no_forward_pass_to_calibrate_with() -> None:
    with pytest.raises(CheckpointError, match=r"deepseek_v4: there is no forward pass .*w4afp8 convert"):
        families.decodable(FAMILY, FLASH)
