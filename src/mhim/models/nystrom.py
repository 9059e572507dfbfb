"""Nyström and exact attention read out by a class token (Xiong et al., AAAI 2021; as in TransMIL, NeurIPS 2021).

Self-attention over n tokens is approximated through m landmarks: softmax(q k_L^T) A+ softmax(q_L k^T) v, with
A = softmax(q_L k_L^T) and A+ its iterated pseudo-inverse. No matrix of n x n is ever formed; the products are
taken from the right, so the largest is n x m, inside the fused attention kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mhim.kernels import Factored, Formed, attend, attend_and_weigh, convolve, dropout, inverse, linear

ClassRow = Literal["class-token", "first-padded"]

_PIECE = 2048  # tokens that attend at once where no gradient is kept


@dataclass(frozen=True)
class Prepared:
    """A token sequence ready to attend.

    Attributes:
        padded: the tokens behind ``padding`` zero tokens.
        padding: how many zero tokens stand in front. They take part in the attention, as published.
        keys: of every padded token.
        values: of every padded token.
        row: attention that the row that was asked for pays to every real token but the first, without gradient.
    """

    padded: Float[Tensor, "padded dim"]
    padding: int
    keys: Float[Tensor, "heads padded head_dim"]
    values: Float[Tensor, "heads padded head_dim"]
    row: Float[Tensor, "heads instances"] | None


@dataclass(frozen=True)
class Landmarked(Prepared):
    """A token sequence prepared for Nyström attention; the padding makes landmarks cover equal groups.

    Attributes:
        landmark_keys: mean keys of the groups.
        inverse: pseudo-inverse of the landmarks' attention among themselves.
        seen: what the landmarks' mean queries take from all tokens.
    """

    landmark_keys: Float[Tensor, "heads m head_dim"]
    inverse: Formed | Factored
    seen: Float[Tensor, "heads m head_dim"]


class ExactAttention(nn.Module):
    """Multi-head self-attention softmax(q k^T) v with a depth-wise value convolution along the sequence.

    Its time grows with the square of the tokens; no matrix of n x n is formed.

    Args:
        dim: token width, a multiple of ``heads``.
        heads: attention heads.
        kernel: odd length of the value convolution, one filter per head.
        dropout: after the output projection.
    """

    def __init__(self, dim: int, heads: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)
        self.value_convolution = nn.Conv2d(heads, heads, (kernel, 1), groups=heads, bias=False)
        self.dropout = nn.Dropout(dropout)

    def prepare(self, tokens: Float[Tensor, "tokens dim"], row: ClassRow | None = None) -> Prepared:
        """Keys and values of a sequence.

        Args:
            tokens: the class token, then the instances.
            row: which row of the attention to read out.
        """
        keys, values = (self._split(linear(tokens, weight)) for weight in self.to_qkv.weight.chunk(3)[1:])
        return Prepared(tokens, 0, keys, values, None if row is None else self._class_row(tokens, keys))

    @torch.no_grad()
    def _class_row(
        self, tokens: Float[Tensor, "tokens dim"], keys: Float[Tensor, "heads tokens head_dim"]
    ) -> Float[Tensor, "heads instances"]:
        """Attention that the first token pays to every other one."""
        return (self._queries(tokens[:1]) @ keys.mT).softmax(dim=-1)[:, 0, 1:]

    def _attended(
        self, prepared: Prepared
    ) -> tuple[Float[Tensor, "heads other head_dim"], Float[Tensor, "heads other head_dim"]]:
        """The keys that every query meets, and what it takes from them."""
        return prepared.keys, prepared.values

    def attend(self, prepared: Prepared, count: int) -> Float[Tensor, "count dim"]:
        """Attention output of the first ``count`` real tokens; without gradient in pieces of bounded memory."""
        seen = self._attended(prepared)
        if torch.is_grad_enabled() or count <= _PIECE:
            return self._attend(prepared, seen, 0, count)
        out = prepared.padded.new_empty(count, self.to_out.out_features)
        for start in range(0, count, _PIECE):
            stop = min(start + _PIECE, count)
            out[start:stop] = self._attend(prepared, seen, start, stop)
        return out

    def _attend(
        self, prepared: Prepared, seen: tuple[Tensor, Tensor], start: int, stop: int
    ) -> Float[Tensor, "piece dim"]:
        """Attention output of the real tokens from ``start`` to ``stop``."""
        first, last = prepared.padding + start, prepared.padding + stop
        mixed = attend(self._queries(prepared.padded[first:last]), *seen)
        return self._finish(mixed + self._convolve(prepared.values, first, stop - start))

    def _finish(self, mixed: Float[Tensor, "heads piece head_dim"]) -> Float[Tensor, "piece dim"]:
        """The heads side by side, projected."""
        out = linear(mixed.transpose(0, 1).flatten(1), self.to_out.weight, self.to_out.bias)
        return dropout(out, self.dropout.p if self.training else 0.0)

    def _queries(self, tokens: Float[Tensor, "count dim"]) -> Float[Tensor, "heads count head_dim"]:
        return self._split(linear(tokens, self.to_qkv.weight.chunk(3)[0])) * self.scale

    def _split(self, tokens: Float[Tensor, "count dim"]) -> Float[Tensor, "heads count head_dim"]:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(0, 1)

    def _convolve(
        self, values: Float[Tensor, "heads padded head_dim"], start: int, count: int
    ) -> Float[Tensor, "heads count head_dim"]:
        """Value convolution at positions start .. start + count of the padded sequence, zeros beyond its ends."""
        filters = self.value_convolution.weight[:, 0, :, 0].to(values.dtype)
        reach = filters.shape[1] // 2
        before, after = min(reach, start), min(reach, values.shape[1] - start - count)
        return convolve(values[:, start - before : start + count + after], filters)[:, before : before + count]


class NystromAttention(ExactAttention):
    """The same through m landmarks, at a cost that is linear in the tokens.

    Args:
        dim: token width, a multiple of ``heads``.
        heads: attention heads.
        landmarks: m; a shorter sequence is padded up to m tokens.
        iterations: of the pseudo-inverse.
        kernel: odd length of the value convolution, one filter per head.
        dropout: after the output projection.
    """

    def __init__(self, dim: int, heads: int, landmarks: int, iterations: int, kernel: int, dropout: float) -> None:
        super().__init__(dim, heads, kernel, dropout)
        self.landmarks = landmarks
        self.iterations = iterations

    def prepare(self, tokens: Float[Tensor, "tokens dim"], row: ClassRow | None = None) -> Landmarked:
        """Keys, values and landmarks of a sequence, and what the landmarks see of it.

        Queries and keys are linear in the tokens, so the landmarks are projected from the groups' mean tokens.

        Args:
            tokens: the class token, then the instances.
            row: read out the attention of the class token, or that of padded position 0 (a zero token unless the
                length is a multiple of the landmarks), which is what MHIM's first public program returned by
                mistake. It is not normalised and may be negative.
        """
        padding = -len(tokens) % self.landmarks
        padded = torch.cat([tokens.new_zeros(padding, tokens.shape[1]), tokens]) if padding else tokens
        means = padded.unflatten(0, (self.landmarks, -1)).mean(dim=1)
        to_query, to_key, to_value = self.to_qkv.weight.chunk(3)
        queries, landmark_keys = self._split(linear(means, to_query)) * self.scale, self._split(linear(means, to_key))
        exact = torch.promote_types(landmark_keys.dtype, torch.float32)
        with torch.autocast(padded.device.type, enabled=False):
            among = (queries.to(exact) @ landmark_keys.to(exact).mT).softmax(dim=-1)
            factors = inverse(among, self.iterations, None if landmark_keys.dtype == exact else landmark_keys.dtype)
        keys, values = self._split(linear(padded, to_key)), self._split(linear(padded, to_value))
        if row is None:
            seen, read = attend(queries, keys, values), None
        else:
            position = padding if row == "class-token" else 0
            with torch.no_grad():
                weights = self._landmark_weights(padded[position : position + 1], landmark_keys, factors)
            seen, read = attend_and_weigh(weights[:, 0], queries, keys, values)
            read = read[:, padding + 1 :]
        return Landmarked(padded, padding, keys, values, read, landmark_keys, factors, seen)

    def attend(self, prepared: Prepared, count: int) -> Float[Tensor, "count dim"]:
        """See :meth:`ExactAttention.attend`; one token goes through the inverse from the left, which is cheaper."""
        if count > 1:
            return super().attend(prepared, count)
        assert isinstance(prepared, Landmarked)
        token = prepared.padded[prepared.padding :][:1]
        weights = self._landmark_weights(token, prepared.landmark_keys, prepared.inverse)
        with torch.autocast(weights.device.type, enabled=False):
            mixed = (weights @ prepared.seen.to(weights.dtype)).to(prepared.seen.dtype)
        return self._finish(mixed + self._convolve(prepared.values, prepared.padding, 1))

    def _attended(self, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """See :meth:`ExactAttention._attended`: the landmarks, and the inverse times what they see."""
        assert isinstance(prepared, Landmarked)
        exact = torch.promote_types(prepared.seen.dtype, torch.float32)
        with torch.autocast(prepared.seen.device.type, enabled=False):
            return prepared.landmark_keys, prepared.inverse.times(prepared.seen.to(exact)).to(prepared.seen.dtype)

    def _landmark_weights(
        self,
        token: Float[Tensor, "1 dim"],
        landmark_keys: Float[Tensor, "heads m head_dim"],
        factors: Formed | Factored,
    ) -> Float[Tensor, "heads 1 m"]:
        """What a token takes from what the landmarks see, in float32 at least: softmax(q k_L^T) A+."""
        share = (self._queries(token) @ landmark_keys.mT).softmax(dim=-1)
        with torch.autocast(token.device.type, enabled=False):
            return factors.after(share.to(torch.promote_types(share.dtype, torch.float32)))
