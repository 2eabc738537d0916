"""The decoder, a layer at a time.  States are one float32 tensor [B, S, H] that each step updates in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from w4afp8.errors import CheckpointError
from w4afp8.families._spec import Dimensions, Family, expert_matrices
from w4afp8.model.attention import Attention, rms_norm
from w4afp8.model.feedforward import intermediate, pieces, rows_per_piece
from w4afp8.model.router import Routing, route
from w4afp8.model.weights import Weights

# What a consumer does to the inputs of an expert's two GEMMs: (layer, "gate_up" | "down", [T, K]) -> [T, K].
Activation = Callable[[int, str, Tensor], Tensor]


def exact(layer: int, site: str, x_TK: Tensor) -> Tensor:
    """Activations as they are."""
    return x_TK


class Decoder:
    """The steps of a forward pass; the caller drives them and may look between them."""

    def __init__(self, family: Family, dimensions: Dimensions, weights: Weights) -> None:
        self.family, self.d, self.weights = family, dimensions, weights

    def embed(self, tokens_BS: Tensor) -> Tensor:
        """Token embeddings, float32 [B, S, H].  Only the rows that occur are widened to float32.

        Raises: CheckpointError for sequences in which the model's indexer would choose among positions.
        """
        if self.d.longest is not None and tokens_BS.shape[1] > self.d.longest:
            raise CheckpointError(
                f"sequences of {tokens_BS.shape[1]} tokens; the indexer of this model shows attention the best "
                f"{self.d.longest} positions, and only up to there is that all of them, as computed here; use shorter"
            )
        table = self.weights.packed("model.embed_tokens.weight")
        unique, place = torch.unique(tokens_BS, return_inverse=True)
        rows = table.real_NK[unique].float() if hasattr(table, "real_NK") else table.dequantize()[unique]
        return rows[place].to(self.weights.device)

    def attend(self, layer: int, states_BSH: Tensor) -> None:
        """Add the attention of `layer` to the states, a sequence at a time."""
        prefix = f"model.layers.{layer}."
        norm = self.weights.vector(f"{prefix}input_layernorm.weight")
        attention = Attention.load(self.weights, f"{prefix}self_attn.", self.d)
        for sequence in states_BSH:
            sequence += attention(rms_norm(sequence, norm, self.d.norm_epsilon), self.d)

    def mlp_input(self, layer: int, states_BSH: Tensor) -> Tensor:
        """The normed input of `layer`'s MLP or experts: float32 [T, H], a new tensor."""
        norm = self.weights.vector(f"model.layers.{layer}.post_attention_layernorm.weight")
        x_TH = states_BSH.flatten(0, 1).clone()
        for piece in pieces(len(x_TH), rows_per_piece(self.d.hidden, self.d.hidden)):
            x_TH[piece] = rms_norm(x_TH[piece], norm, self.d.norm_epsilon)
        return x_TH

    def route(self, layer: int, x_TH: Tensor) -> Routing:
        """The routing of every token in `layer`."""
        prefix = f"model.layers.{layer}.mlp.gate."
        weight = self.weights.matrix(f"{prefix}weight")
        return route(x_TH, weight, self.weights.vector(f"{prefix}e_score_correction_bias"), self.d)

    def add_mlp(self, prefix: str, x_TH: Tensor, states_TH: Tensor) -> None:
        """Add a dense MLP (or the shared expert) to the states."""
        gate, up, down = (self.weights.matrix(f"{prefix}{p}.weight") for p in ("gate_proj", "up_proj", "down_proj"))
        for piece in pieces(len(x_TH), rows_per_piece(self.d.hidden, len(gate))):
            states_TH[piece] += intermediate(x_TH[piece], gate, up) @ down.T

    def expert(self, layer: int, expert: int) -> tuple[Tensor, Tensor, Tensor]:
        """One expert's gate [I, H], up [I, H] and down [H, I], float32."""
        gate, up, down = expert_matrices(self.family, self.d, layer, expert)
        return self.weights.matrix(gate), self.weights.matrix(up), self.weights.matrix(down)

    def add_experts(
        self, layer: int, x_TH: Tensor, routing: Routing, states_TH: Tensor, activation: Activation = exact
    ) -> None:
        """Add every routed expert's weighted output to the states, one expert in memory at a time."""
        for e in range(self.d.experts):
            tokens, weight = routing.tokens_of(e)
            if len(tokens) == 0:
                continue
            gate, up, down = self.expert(layer, e)
            for piece in pieces(len(tokens), rows_per_piece(self.d.hidden, len(gate))):
                x = activation(layer, "gate_up", x_TH[tokens[piece]])
                h = activation(layer, "down", intermediate(x, gate, up))
                states_TH.index_add_(0, tokens[piece], (h @ down.T).mul_(weight[piece, None]))

    def step(self, layer: int, states_BSH: Tensor, activation: Activation = exact) -> Routing | None:
        """One whole layer, in place; the routing when it has experts."""
        self.attend(layer, states_BSH)
        x_TH = self.mlp_input(layer, states_BSH)
        states_TH = states_BSH.view(-1, self.d.hidden)
        prefix = f"model.layers.{layer}.mlp."
        if not self.d.is_moe(layer):
            self.add_mlp(prefix, x_TH, states_TH)
            return None
        routing = self.route(layer, x_TH)
        self.add_mlp(f"{prefix}shared_experts.", x_TH, states_TH)
        self.add_experts(layer, x_TH, routing, states_TH, activation)
        return routing

    def choose(self, layer: int, states_BSH: Tensor) -> Routing | None:
        """The routing of `layer` alone: its attention moves the states, its experts are not read."""
        self.attend(layer, states_BSH)
        return self.route(layer, self.mlp_input(layer, states_BSH)) if self.d.is_moe(layer) else None

    def mtp_input(self, layer: int, tokens_BS: Tensor, states_BSH: Tensor) -> Tensor:
        """States that enter an MTP layer: position t sees the main model's output at t and token t + 1.

        The last position of each sequence has no next token and is dropped: [B, S] -> [B, S - 1, H].
        Agrees with: vLLM and SGLang, which feed the final norm's output to `hnorm`.
        """
        prefix = f"model.layers.{layer}."
        eps, vector = self.d.norm_epsilon, self.weights.vector
        final, hidden_norm, next_norm = (
            vector(n) for n in ("model.norm.weight", f"{prefix}hnorm.weight", f"{prefix}enorm.weight")
        )
        project = self.weights.matrix(f"{prefix}eh_proj.weight")
        entering = torch.empty_like(states_BSH[:, 1:])
        for b, sequence in enumerate(states_BSH):
            hidden = rms_norm(rms_norm(sequence[:-1], final, eps), hidden_norm, eps)
            follower = rms_norm(self.embed(tokens_BS[b : b + 1, 1:])[0], next_norm, eps)
            entering[b] = torch.cat((follower, hidden), -1) @ project.T
        return entering

    def logits(self, states_BSH: Tensor) -> Iterator[Tensor]:
        """Next-token logits, a sequence at a time: float32 [S, V] each."""
        norm = self.weights.vector("model.norm.weight")
        head = self.weights.matrix("model.embed_tokens.weight" if self.d.tied_head else "lm_head.weight")
        for sequence in states_BSH:
            yield rms_norm(sequence, norm, self.d.norm_epsilon) @ head.T
