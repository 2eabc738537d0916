"""Which experts a token meets: sigmoid scores, a correction bias that only chooses, groups, top-k."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w4afp8.families._spec import Dimensions


@dataclass(frozen=True, slots=True)
class Routing:
    """Chosen experts and their weights, `routed_scaling_factor` already inside."""

    experts_TK: Tensor  # int64 [T, k]
    weights_TK: Tensor  # float32 [T, k]
    scores_TE: Tensor  # float32 [T, E]: sigmoid + bias, the choice's own order; ranks the tokens that just missed

    def tokens_of(self, expert: int) -> tuple[Tensor, Tensor]:
        """The tokens that go to `expert`, ascending, and their weights: int64 [n], float32 [n]."""
        token, slot = (self.experts_TK == expert).nonzero(as_tuple=True)
        return token, self.weights_TK[token, slot]

    def counts(self, experts: int) -> Tensor:
        """Tokens per expert: int64 [E]."""
        return torch.bincount(self.experts_TK.flatten(), minlength=experts)


def route(x_TH: Tensor, weight_EH: Tensor, bias_E: Tensor, d: Dimensions) -> Routing:
    """Choose `experts_per_token` experts from the best `groups_per_token` groups of each token.

    Agrees with: DeepSeek-V3's noaux_tc; a group's score is the sum of its two best biased scores.
    """
    scores_TE = torch.sigmoid(x_TH.float() @ weight_EH.float().T)
    choice_TE = scores_TE + bias_E
    grouped = choice_TE.view(len(x_TH), d.expert_groups, -1)
    best_two = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
    kept = torch.zeros_like(best_two, dtype=torch.bool)
    kept.scatter_(1, best_two.topk(d.groups_per_token, dim=-1).indices, True)
    masked = grouped.masked_fill(~kept[..., None], float("-inf")).view_as(choice_TE)
    experts_TK = masked.topk(d.experts_per_token, dim=-1).indices
    weights_TK = scores_TE.gather(1, experts_TK)
    if d.normalize_weights:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    return Routing(experts_TK, weights_TK * d.routed_scale, choice_TE)
