"""Nyström and exact attention read out by a class token (Xiong et al., AAAI 2021; as in TransMIL, NeurIPS 2021).

Self-attention over n tokens is approximated through m landmarks: softmax(q k_L^T) A+ softmax(q_L k^T) v, with
A = softmax(q_L k_L^T) and A+ its iterated pseudo-inverse. No matrix of n x n is ever formed; the products are
taken from the right, so the largest is n x m, inside the fused attention kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mhim.kernels import attend, convolve, dropout, linear, multiply, one_by_one, weighed_shares

ClassRow = Literal["class-token", "first-padded"]

_PIECE = 2048  # tokens that attend at once where no gradient is kept


def pseudo_inverse(matrix: Float[Tensor, "heads m m"], iterations: int) -> Float[Tensor, "heads m m"]:
    """Iterated Moore-Penrose inverse (Xiong et al., section 3.3, equation 11).

    Starts at A^T / (largest row sum x largest column sum of |A|), both taken over all heads together, and
    repeats Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4. The order of the operations is part of the contract:
    forms with fewer products (iterating on A Z, a last round on thin matrices) lose a digit where the landmarks
    are nearly alike, as in a bag of one instance.
    """
    size = matrix.abs()
    guess = matrix.mT / (size.sum(dim=-1).max() * size.sum(dim=-2).max())
    for _ in range(iterations):
        guess = _Round.apply(matrix, guess)
    return guess


def _from_identity(factor: int, matrix: Float[Tensor, "*heads m m"]) -> Float[Tensor, "*heads m m"]:
    """The matrix factor I - M."""
    difference = matrix.neg()
    difference.diagonal(dim1=-2, dim2=-1).add_(factor)
    return difference


def _round(matrix: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
    """One round, and A Z."""
    product = multiply(matrix, guess)
    inner = multiply(product, _from_identity(7, product))
    outer = multiply(product, _from_identity(15, inner))
    return multiply(0.25 * guess, _from_identity(13, outer)), product


def _round_backward(matrix: Tensor, guess: Tensor, product: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of A and Z, of Z' = Z (13 - 15 Y + 7 Y^2 - Y^3) / 4 with Y = A Z: ten products, nothing kept but Y."""
    turned, grad = product.mT, 0.25 * grad
    once = multiply(grad, turned)
    twice = multiply(once, turned)
    of_guess = (13 * grad).sub_(once, alpha=15).add_(twice, alpha=7).sub_(multiply(twice, turned))
    of_outer = multiply(guess.mT, grad).neg_()
    left, right = multiply(turned, of_outer), multiply(of_outer, turned)
    both = right.add_(left)
    of_product = of_outer.mul_(15).sub_(both, alpha=7).add_(multiply(both, turned)).add_(multiply(turned, left))
    return multiply(of_product, guess.mT), of_guess.add_(multiply(matrix.mT, of_product))


class _Round(torch.autograd.Function):
    """One round of the iteration. Its gradient keeps three matrices where autograd would keep nine."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, guess: Tensor) -> Tensor:
        """See :func:`pseudo_inverse`."""
        result, product = one_by_one(_round, matrix, guess)
        ctx.save_for_backward(matrix, guess, product)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """See :func:`_round_backward`."""
        return one_by_one(_round_backward, *ctx.saved_tensors, grads[0])


@dataclass(frozen=True)
class Prepared:
    """A token sequence ready to attend.

    Attributes:
        padded: the tokens behind ``padding`` zero tokens.
        padding: how many zero tokens stand in front. They take part in the attention, as published.
        keys: of every padded token.
        values: of every padded token.
    """

    padded: Float[Tensor, "padded dim"]
    padding: int
    keys: Float[Tensor, "heads padded head_dim"]
    values: Float[Tensor, "heads padded head_dim"]


@dataclass(frozen=True)
class Landmarked(Prepared):
    """A token sequence prepared for Nyström attention; the padding makes landmarks cover equal groups.

    Attributes:
        landmark_queries: scaled mean queries of the groups.
        landmark_keys: mean keys of the groups.
        inverse: pseudo-inverse of the landmarks' attention among themselves.
    """

    landmark_queries: Float[Tensor, "heads m head_dim"]
    landmark_keys: Float[Tensor, "heads m head_dim"]
    inverse: Float[Tensor, "heads m m"]


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

    def prepare(self, tokens: Float[Tensor, "tokens dim"]) -> Prepared:
        """Keys and values of a sequence."""
        _, to_key, to_value = self.to_qkv.weight.chunk(3)
        return Prepared(tokens, 0, self._split(linear(tokens, to_key)), self._split(linear(tokens, to_value)))

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
        queries = self._queries(prepared.padded[first:last])
        mixed = attend(queries, *seen)
        mixed = mixed + self._convolve(prepared.values, first, stop - start)
        out = linear(mixed.transpose(0, 1).flatten(1), self.to_out.weight, self.to_out.bias)
        return dropout(out, self.dropout.p if self.training else 0.0)

    @torch.no_grad()
    def class_row(self, prepared: Prepared, row: ClassRow) -> Float[Tensor, "heads tokens"]:
        """Attention that the first token pays to every other token; a read-out without gradient."""
        query = self._queries(prepared.padded[:1])
        return (query @ prepared.keys.mT).softmax(dim=-1)[:, 0, 1:]

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

    def prepare(self, tokens: Float[Tensor, "tokens dim"]) -> Landmarked:
        """Keys, values and landmarks of a sequence.

        Queries and keys are linear in the tokens, so the landmarks are projected from the groups' mean tokens.
        """
        padding = -len(tokens) % self.landmarks
        padded = F.pad(tokens, (0, 0, padding, 0))
        means = padded.unflatten(0, (self.landmarks, -1)).mean(dim=1)
        to_query, to_key, to_value = self.to_qkv.weight.chunk(3)
        landmark_queries = self._split(linear(means, to_query)) * self.scale
        landmark_keys = self._split(linear(means, to_key))
        exact = torch.promote_types(landmark_keys.dtype, torch.float32)
        with torch.autocast(padded.device.type, enabled=False):
            among = (landmark_queries.to(exact) @ landmark_keys.to(exact).mT).softmax(dim=-1)
            inverse = pseudo_inverse(among, self.iterations)
        return Landmarked(
            padded=padded,
            padding=padding,
            keys=self._split(linear(padded, to_key)),
            values=self._split(linear(padded, to_value)),
            landmark_queries=landmark_queries,
            landmark_keys=landmark_keys,
            inverse=inverse,
        )

    def _attended(self, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """See :meth:`ExactAttention._attended`: the landmarks, and the inverse times what they see."""
        assert isinstance(prepared, Landmarked)
        seen = attend(prepared.landmark_queries, prepared.keys, prepared.values)
        with torch.autocast(seen.device.type, enabled=False):
            return prepared.landmark_keys, (prepared.inverse @ seen.to(prepared.inverse.dtype)).to(seen.dtype)

    @torch.no_grad()
    def class_row(self, prepared: Prepared, row: ClassRow) -> Float[Tensor, "heads tokens"]:
        """Attention that the first token pays to every other real token; not normalised, may be negative.

        A read-out without gradient.

        Args:
            prepared: the sequence.
            row: the class token's row, or that of padded position 0 (a zero token unless the length is a
                multiple of the landmarks), which is what MHIM's first public program returned by mistake.
        """
        assert isinstance(prepared, Landmarked)
        position = prepared.padding if row == "class-token" else 0
        query = self._queries(prepared.padded[position : position + 1])
        share = (query @ prepared.landmark_keys.mT).softmax(dim=-1)
        with torch.autocast(query.device.type, enabled=False):
            weights = share.to(prepared.inverse.dtype) @ prepared.inverse
            attention = weighed_shares(weights[:, 0], prepared.landmark_queries, prepared.keys)
        return attention[:, prepared.padding + 1 :]
