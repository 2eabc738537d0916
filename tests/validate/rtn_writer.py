"""Plain rounding (amax/7.5 in bfloat16, codes -8..7) of a whole checkpoint, in one function and with safetensors' own
writer: the tests' quantizer, so that validate is not tested with the code it is to judge."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

EXPERT = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight$")
SHORT = {"gate": "w1", "down": "w2", "up": "w3"}
INPUT_SCALE = {"gate": 0.03, "up": 0.03, "down": 0.05}


def read_all(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a directory, in the index's order."""
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {}
    for file in sorted(set(weight_map.values())):
        with safe_open(folder / file, "pt") as reader:
            tensors |= {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    return tensors


def dequantize_blocks(codes: Tensor, scale: Tensor) -> Tensor:
    wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return codes.float() * wide[: codes.shape[0], : codes.shape[1]]


def round_to_int4(real: Tensor) -> tuple[Tensor, Tensor]:
    """Packed bytes and float32 scales that bfloat16 holds exactly."""
    grouped = real.view(real.shape[0], -1, 128)
    scale = (grouped.abs().amax(-1).clamp_min(1e-20) / 7.5).bfloat16().float()
    codes = (grouped / scale[..., None]).round().clamp(-8, 7).to(torch.int8).view(real.shape)
    return (codes[:, 1::2] << 4) | (codes[:, 0::2] & 15), scale


def quantize_expert(tensors: dict[str, Tensor], name: str, real: Tensor) -> None:
    """Put an expert matrix into `tensors` as int4."""
    packed, scale = round_to_int4(real)
    tensors[name] = packed
    tensors[name + "_scale_inv"] = scale


def write_rtn(source: Path, out: Path, record: dict[str, Any] | None = None) -> None:
    """Quantize `source` into `out`: two shards, act_scales, config, side files, a record without folds."""
    tensors = read_all(source)
    scales: dict[str, Tensor] = {}
    for name in [name for name in tensors if EXPERT.match(name)]:
        real = dequantize_blocks(tensors[name], tensors[name + "_scale_inv"])
        quantize_expert(tensors, name, real)
        layer, expert, kind = EXPERT.match(name).groups()  # type: ignore[union-attr]
        stem = f"model.layers.{layer}.mlp.experts.{expert}.{SHORT[kind]}"
        scales[f"{stem}.input_scale"] = torch.tensor([INPUT_SCALE[kind]]).bfloat16().float()
    out.mkdir(parents=True)
    write_tensors(out, tensors, scales)
    config = json.loads((source / "config.json").read_text())
    write_config(out, config)
    for path in source.iterdir():
        if path.suffix == ".json" and path.name not in ("config.json", "model.safetensors.index.json"):
            shutil.copyfile(path, out / path.name)
    (out / "w4afp8").mkdir()
    write_inputs(out, config)
    write_json(out / "w4afp8/record.json", record or {"format": "sglang_w4afp8", "method": "rtn", "layers": []})


def write_inputs(out: Path, config: dict[str, Any], tokens: int = 24) -> None:
    """Gaussian inputs, routed at random, for every layer with experts."""
    generator = torch.Generator().manual_seed(11)
    inputs: dict[str, Tensor] = {}
    layers = config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0)
    for layer in range(config["first_k_dense_replace"], layers):
        x = torch.randn(tokens, config["hidden_size"], generator=generator).bfloat16()
        chosen = torch.rand(tokens, config["n_routed_experts"], generator=generator)
        experts = chosen.topk(config["num_experts_per_tok"]).indices.int()
        inputs |= {f"layers.{layer}.x": x, f"layers.{layer}.experts": experts}
        inputs[f"layers.{layer}.weights"] = torch.full(experts.shape, 0.6)
    save_file(inputs, out / "w4afp8/inputs.safetensors")


def encode_blocks(real: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 with amax/448 per 128 x 128 block; both sides multiples of 128."""
    n, k = real.shape
    blocks = real.view(n // 128, 128, k // 128, 128)
    scale = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / scale[:, None, :, None]).view(n, k).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes, scale


def fold_layer(source: Path, out: Path, layer: int) -> None:
    """Divide a layer's norm by powers of two and every up row by anything, multiply what follows; record it."""
    generator = torch.Generator().manual_seed(layer)
    original, prefix = read_all(source), f"model.layers.{layer}."
    norm = original[f"{prefix}post_attention_layernorm.weight"]
    s = 2.0 ** torch.randint(0, 2, norm.shape, generator=generator)
    changed = {f"{prefix}post_attention_layernorm.weight": (norm.float() / s).bfloat16()}
    router = f"{prefix}mlp.gate.weight"
    changed[router] = (original[router].float() * s).bfloat16()
    for kind in ("gate", "up"):
        name = f"{prefix}mlp.shared_experts.{kind}_proj.weight"
        codes, scale = encode_blocks(dequantize_blocks(original[name], original[name + "_scale_inv"]) * s)
        changed |= {name: codes, name + "_scale_inv": scale}
    for name in [name for name in original if name.startswith(f"{prefix}mlp.experts.") and EXPERT.match(name)]:
        real = dequantize_blocks(original[name], original[name + "_scale_inv"])
        _, expert, kind = EXPERT.match(name).groups()  # type: ignore[union-attr]
        t = torch.rand(real.shape[0], generator=torch.Generator().manual_seed(int(expert))) * 0.8 + 0.6
        real = {"gate": real * s, "up": real * s / t[:, None], "down": real * t}[kind]
        quantize_expert(changed, name, real.contiguous())
    for file in {file_of(out, name) for name in changed}:
        mine = {name: tensor for name, tensor in changed.items() if file_of(out, name) == file}
        edit_tensors(out, file, lambda tensors, mine=mine: tensors.update(mine))
    record = json.loads((out / "w4afp8/record.json").read_text())
    folded = [{"layer": layer, "fold": {"kept": True}}]
    write_json(out / "w4afp8/record.json", {**record, "method": "awq", "layers": folded})


def write_tensors(out: Path, tensors: dict[str, Tensor], scales: dict[str, Tensor]) -> None:
    """Two shards, act_scales.safetensors and the index."""
    names = sorted(tensors)
    files = {
        "model-00001-of-00002.safetensors": {n: tensors[n] for n in names[: len(names) // 2]},
        "model-00002-of-00002.safetensors": {n: tensors[n] for n in names[len(names) // 2 :]},
        "act_scales.safetensors": scales,
    }
    weight_map: dict[str, str] = {}
    total = 0
    for file, content in files.items():
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, out / file, {"format": "pt"})
        weight_map |= dict.fromkeys(content, file)
        total += sum(tensor.numel() * tensor.element_size() for tensor in content.values())
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_config(out: Path, source: dict[str, Any]) -> None:
    """config.json and the two files that TensorRT-LLM reads."""
    config = {
        **source,
        "quantization_config": {
            "quant_method": "w4afp8", "activation_scheme": "static", "linear_activation_scheme": "dynamic",
            "weight_block_size": [128, 128], "group_size": 128,
            **({"mtp_experts": "int4"} if source.get("num_nextn_predict_layers") else {}),
        },
    }  # fmt: skip
    write_json(out / "config.json", config)
    mixed = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None}
    write_json(out / "hf_quant_config.json", {"quantization": mixed})
    layers: dict[str, Any] = {}
    block = {"quant_algo": "FP8_BLOCK_SCALES"}
    for layer in range(source["num_hidden_layers"] + source.get("num_nextn_predict_layers", 0)):
        prefix = f"model.layers.{layer}"
        layers |= {f"{prefix}.self_attn.{n}": block for n in ("fused_a", "q_b_proj", "kv_b_proj", "o_proj")}
        dense = layer < source["first_k_dense_replace"]
        for name in ("gate_up_proj", "down_proj"):
            layers[f"{prefix}.mlp.{'' if dense else 'shared_experts.'}{name}"] = block
        if not dense:
            layers[f"{prefix}.mlp.experts"] = {"quant_algo": "W4A8_AWQ", "group_size": 128}
    write_json(out / "quant_cfg.json", {**mixed, "quantized_layers": layers})


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def edit_tensors(folder: Path, file: str, change: Any) -> None:
    """Rewrite one safetensors file with `change(tensors)` applied in place."""
    with safe_open(folder / file, "pt") as reader:
        tensors = {name: reader.get_tensor(name).clone() for name in reader.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})


def file_of(folder: Path, name: str) -> str:
    """The file that the index places `name` in."""
    weight_map: dict[str, str] = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return weight_map[name]
