"""Multi-head latent attention over whole sequences, one at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from w4afp8.families._spec import Dimensions
from w4afp8.model import rope
from w4afp8.model.weights import Weights


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, in float32."""
    return F.rms_norm(x.float(), (x.shape[-1],), weight, epsilon)


LORA_EPSILON = 1e-6  # transformers' default for the two inner norms, whatever rms_norm_eps says


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention weights, float32."""

    query: tuple[Tensor, Tensor, Tensor] | Tensor  # q_a, its norm, q_b; or q alone
    kv_a: Tensor
    kv_norm: Tensor
    kv_b: Tensor
    out: Tensor

    @staticmethod
    def load(weights: Weights, prefix: str, d: Dimensions) -> Attention:
        def matrix(name: str) -> Tensor:
            return weights.matrix(f"{prefix}{name}.weight")

        return Attention(
            query=(matrix("q_a_proj"), weights.vector(f"{prefix}q_a_layernorm.weight"), matrix("q_b_proj"))
            if d.q_lora
            else matrix("q_proj"),
            kv_a=matrix("kv_a_proj_with_mqa"),
            kv_norm=weights.vector(f"{prefix}kv_a_layernorm.weight"),
            kv_b=matrix("kv_b_proj"),
            out=matrix("o_proj"),
        )

    def __call__(self, x_SH: Tensor, d: Dimensions) -> Tensor:
        """Causal attention within one sequence: float32 [S, H] -> [S, H]."""
        s = x_SH.shape[0]
        cos, sin = (t.to(x_SH.device) for t in rope.tables(d.rope, d.rope_dims, s))
        if isinstance(self.query, tuple):
            down, norm, up = self.query
            q = rms_norm(x_SH @ down.T, norm, LORA_EPSILON) @ up.T
        else:
            q = x_SH @ self.query.T
        q_nope, q_rope = torch.split(q.view(s, d.heads, d.query_head).transpose(0, 1), [d.nope, d.rope_dims], -1)
        latent, k_rope = torch.split(x_SH @ self.kv_a.T, [d.kv_lora, d.rope_dims], -1)
        kv = rms_norm(latent, self.kv_norm, LORA_EPSILON) @ self.kv_b.T
        k_nope, value = torch.split(kv.view(s, d.heads, -1).transpose(0, 1), [d.nope, d.value_head], -1)
        q_rope = rope.rotate(q_rope, cos, sin, d.rope_interleaved)
        k_rope = rope.rotate(k_rope, cos, sin, d.rope_interleaved).expand(d.heads, s, d.rope_dims)
        # Values are padded to the query's width: only then does torch take its fused path, which never holds S x S.
        out = F.scaled_dot_product_attention(
            torch.cat((q_nope, q_rope), -1)[None],
            torch.cat((k_nope, k_rope), -1)[None],
            F.pad(value, (0, max(0, d.query_head - d.value_head)))[None],
            is_causal=True,
            scale=rope.softmax_scale(d.rope, d.query_head),
        )[0, ..., : d.value_head]
        return out.transpose(0, 1).reshape(s, -1) @ self.out.T


def working_bytes(d: Dimensions, sequence: int) -> int:
    """Most that one sequence's attention holds beside its weights: q, k, v, their parts and the output."""
    per_position = d.heads * (6 * d.query_head + 2 * (d.nope + d.value_head) + d.value_head) + 3 * d.hidden
    return 4 * sequence * per_position
