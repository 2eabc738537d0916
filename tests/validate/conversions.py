"""Converted directories, proven as the command does it, broken and forged: what the tests of conversions share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rtn_writer import write_json
from safetensors.torch import load_file, save_file
from torch import Tensor

from w4afp8 import conversion
from w4afp8.checkpoint.lineage import read_lineage, write_lineage
from w4afp8.validate import ValidationReport, gate, validate
from w4afp8.validate.origin import origin_of
from w4afp8.validate.seal import Seal, take_seal

Toys = Callable[[str], tuple[Path, Path]]
Published = Callable[[Any, str], Path]  # (config of a family, {} is the toy DeepSeek-V3; format)
Ours = Callable[..., Path]
Change = Callable[[dict[str, Tensor]], Any]
SGLANG, CT, MODELOPT = "sglang_w4afp8", "compressed_tensors_w4a8", "modelopt_w4a8_awq"
V4 = {
    "model_type": "deepseek_v4", "vocab_size": 64, "hidden_size": 256, "moe_intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 64, "q_lora_rank": 64, "num_experts_per_tok": 2,
    "n_routed_experts": 2, "n_shared_experts": 1, "o_groups": 2, "o_lora_rank": 64, "index_n_heads": 2,
    "index_head_dim": 32, "index_topk": 8, "hc_mult": 2, "num_hash_layers": 1, "compress_ratios": [4, 128],
    "num_nextn_predict_layers": 1, "swiglu_limit": 10.0, "scoring_func": "sqrtsoftplus",
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "vocab_size": 64, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1,
    "num_local_experts": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "num_experts_per_tok": 2,
}  # fmt: skip
# Where the first routed expert stands.
V3 = "model.layers.1.mlp.experts.0.gate_proj"
V4_STEM, STACK = "layers.1.ffn.experts.0.w1", "model.layers.0.mlp.experts.gate_up_proj"


def convert(source: Path, target: str, out: Path, shard_gb: float = 0.0003) -> Path:
    conversion.run(conversion.prepare(source, target, out, shard_gb))
    return out


def prove(folder: Path, source: Path | None = None) -> ValidationReport:
    """Validate as the command does, verdict included."""
    seal, report = take_seal(folder), validate(folder, source)
    gate.write_verdict(folder, report, seal, origin_of(source) if source else None)
    return report


def blamed(report: ValidationReport) -> dict[str, list[str]]:
    return {check.name: [str(problem) for problem in check.problems] for check in report.checks if check.failed}


def untested(report: ValidationReport) -> list[str]:
    return [check.name for check in report.checks if check.skipped]


def edit(folder: Path, change: Change) -> None:
    """Change tensors where they stand; one that is gone leaves the index too."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for path in sorted(folder.glob("model-*.safetensors")):
        held = load_file(path)
        change(held)
        save_file(held, path, {"format": "pt"})
        for name in [n for n, file in index["weight_map"].items() if file == path.name and n not in held]:
            del index["weight_map"][name]
    size = sum(t.nbytes for path in folder.glob("*.safetensors") for t in load_file(path).values())
    write_json(folder / "model.safetensors.index.json", index | {"metadata": {"total_size": size}})


def forge(folder: Path, record: bool = True) -> None:
    """What a converter would record that wrote these bytes, in `record`.json too."""
    path = folder / "w4afp8/record.json"
    if record:
        write_json(path, json.loads(path.read_text()) | {"digests": _forged(folder, take_seal(folder))})
    seal = take_seal(folder)
    lineage = read_lineage(folder)
    files = {name: seal.files[name].sha256 for name in lineage.files}
    write_lineage(folder, replace(lineage, digests=_forged(folder, seal), files=files))


def _forged(folder: Path, seal: Seal) -> dict[str, str]:
    return {name: seal.tensors[name] for name in read_lineage(folder).digests}


def nibble(held: dict[str, Tensor], name: str) -> None:
    held[name].view(torch.uint8).view(-1)[3] ^= 0x10


def last_bit(held: dict[str, Tensor], name: str) -> None:
    held[name].view(torch.uint8).view(-1)[-1] ^= 1


def swap(held: dict[str, Tensor], name: str) -> None:
    """With the next expert's: another tensor, or another part of the same."""
    other = name.replace("experts.0.", "experts.1.")
    if other != name:
        held[name], held[other] = held[other], held[name]
    else:
        held[name] = held[name][[1, 0, *range(2, len(held[name]))]].contiguous()
