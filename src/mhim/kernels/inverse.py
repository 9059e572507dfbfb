"""Products with the iterated pseudo-inverse of Nyström attention; its last rounds, or all, are never formed.

With A the landmarks' attention (m x m), c its largest row sum times its largest column sum, and Z_0 = A^T / c, a
round is Z <- Z p(Y), Y = A Z, p(Y) = (13 - 15 Y + 7 Y^2 - Y^3) / 4.

Formed, that is four products of m x m a round and eight for its gradient. The order of the operations matters: forms
with fewer products lose a digit of float32 where the landmarks are nearly alike, as in a bag of one instance. Only the
last two rounds do not: with Y <- Y p(Y), two products, Z p(Y_4) p(Y_5) M is taken from the right, as near to float64 as
the whole inverse is.

Factored, the inverse is A^T F / c with F = p(Y_0) p(Y_1) .., all polynomials of the symmetric Y_0 = A A^T / c, and F M
is taken from the right. The gradient of a round is symmetric and needs three products, which may be rounded.

In R = I - Y, p = I + R + R^2 + R^3 / 4 and R <- R^3 (3 + R) / 4 have no differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mhim.kernels.gemm import by_entry, multiply, one_by_one

_THIN_ROUNDS = 2
"""Last rounds that are not formed in full precision; with three, attention that is sharp loses a third of a digit."""


def pseudo_inverse(matrix: Float[Tensor, "heads m m"], iterations: int) -> Float[Tensor, "heads m m"]:
    """Iterated Moore-Penrose inverse (Xiong et al., AAAI 2021, section 3.3, equation 11), the plain form.

    Starts at A^T / (largest row sum x largest column sum of |A|), both taken over all heads together, and
    repeats Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4.
    """
    guess = matrix.mT / _largest_sums(matrix)
    for _ in range(iterations):
        product = matrix @ guess
        inner = product @ _from_identity(7, product)
        guess = 0.25 * guess @ _from_identity(13, product @ _from_identity(15, inner))
    return guess


@dataclass(frozen=True)
class Formed:
    """The pseudo-inverse as Z F, F = p(Y) p(Y p(Y)) .. of the last rounds, Y = A Z.

    Attributes:
        matrix: A.
        guess: Z, all other rounds done.
        products: Y of the last rounds, without gradient.
    """

    matrix: Float[Tensor, "heads m m"]
    guess: Float[Tensor, "heads m m"]
    products: tuple[Float[Tensor, "heads m m"], ...]

    def times(self, columns: Float[Tensor, "heads m k"]) -> Float[Tensor, "heads m k"]:
        """A+ M = Z (F M)."""
        return self.guess @ _Tail.apply(columns, self.matrix, self.guess, *self.products)

    def after(self, rows: Float[Tensor, "heads k m"]) -> Float[Tensor, "heads k m"]:
        """M A+ = (F^T (M Z)^T)^T, with Y^T = Z^T A^T."""
        turned = (product.mT for product in self.products)
        return _Tail.apply((rows @ self.guess).mT, self.guess.mT, self.matrix.mT, *turned).mT


@dataclass(frozen=True)
class Factored:
    """The pseudo-inverse as a product.

    Attributes:
        matrix: A.
        size: c.
        products: Y of every round, without gradient.
        rounded: dtype of the products of a gradient.
    """

    matrix: Float[Tensor, "heads m m"]
    size: Float[Tensor, ""]
    products: tuple[Float[Tensor, "heads m m"], ...]
    rounded: torch.dtype

    def times(self, columns: Float[Tensor, "heads m k"]) -> Float[Tensor, "heads m k"]:
        """A+ M = A^T (F M) / c."""
        return self._chain(columns).mT.matmul(self.matrix).mT / self.size

    def after(self, rows: Float[Tensor, "heads k m"]) -> Float[Tensor, "heads k m"]:
        """M A+ = (F (A M^T) / c)^T; cheap for few rows."""
        return self._chain(self.matrix @ rows.mT).mT / self.size

    def _chain(self, columns: Float[Tensor, "heads m k"]) -> Float[Tensor, "heads m k"]:
        return _Chain.apply(columns, self.matrix, self.size, self.rounded, *self.products)


def inverse(matrix: Float[Tensor, "heads m m"], iterations: int, rounded: torch.dtype | None) -> Formed | Factored:
    """What multiplies by :func:`pseudo_inverse`.

    Args:
        matrix: A, entries at least 0.
        iterations: at least 1.
        rounded: dtype of the products of its gradient, where it is factored: a digit or two of float32 are lost. None:
            it is formed.
    """
    size = _largest_sums(matrix)
    if rounded is None:
        thin = min(_THIN_ROUNDS, iterations)
        guess = matrix.mT / size
        if iterations > thin:
            guess = _Rounds.apply(matrix, guess, iterations - thin)
        with torch.no_grad():
            products = one_by_one(lambda *parts: _products(multiply(*parts), thin), matrix, guess)
        return Formed(matrix, guess, products)
    with torch.no_grad():
        products = one_by_one(lambda part: _products(multiply(part, part.mT).div_(size), iterations), matrix)
    return Factored(matrix, size, products, rounded)


def _largest_sums(matrix: Float[Tensor, "heads m m"]) -> Float[Tensor, ""]:
    size = matrix.abs()
    return size.sum(dim=-1).max() * size.sum(dim=-2).max()


def _from_identity(factor: int, matrix: Float[Tensor, "*heads m m"]) -> Float[Tensor, "*heads m m"]:
    """The matrix factor I - M."""
    difference = matrix.neg()
    difference.diagonal(dim1=-2, dim2=-1).add_(factor)
    return difference


class _Rounds(torch.autograd.Function):
    """Rounds of the iteration. Its gradient keeps three matrices a round where autograd would keep nine."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, guess: Tensor, count: int) -> Tensor:
        """See :func:`pseudo_inverse`."""
        keeps = any(ctx.needs_input_grad)
        results = by_entry(lambda matrix, guess: _rounds(matrix, guess, count, keeps), matrix, guess)
        ctx.save_for_backward(matrix, *(kept for _, *rest in results for kept in rest))
        return _joined([result for result, *_ in results], guess)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The last round first, see :func:`_round_backward`."""
        matrix, *kept = ctx.saved_tensors

        def gradients(matrix: Tensor, grad: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
            of_matrix = torch.zeros_like(matrix)
            for guess, product, polynomial in reversed(kept.unflatten(0, (-1, 3)).unbind()):
                grad, more = _round_backward(matrix, guess, product, polynomial, grad)
                of_matrix += more
            return of_matrix, grad

        of_matrix, of_guess = zip(*by_entry(gradients, matrix, grads[0], kept), strict=True)
        return _joined(of_matrix, matrix), _joined(of_guess, matrix), None


def _joined(entries: Sequence[Tensor], like: Tensor) -> Tensor:
    """Entries as a batch, which they may be already."""
    return entries[0] if entries[0].shape == like.shape else torch.stack(list(entries))


def _rounds(matrix: Tensor, guess: Tensor, count: int, keeps: bool) -> tuple[Tensor, ...]:
    """Z after some rounds; then, if they are kept, Z, Y and p(Y) of each in one block."""
    kept = list[Tensor]()
    for _ in range(count):
        product = multiply(matrix, guess)
        inner = multiply(product, _from_identity(7, product))
        outer = multiply(product, _from_identity(15, inner))
        polynomial = _from_identity(13, outer).mul_(0.25)
        if keeps:
            kept += guess, product, polynomial
        guess = multiply(guess, polynomial)
    return (guess, torch.stack(kept)) if kept else (guess,)


def _round_backward(
    matrix: Tensor, guess: Tensor, product: Tensor, polynomial: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of Z and A, of Z' = Z p(Y) with Y = A Z: eight products."""
    of_polynomial = multiply(guess.mT, grad)
    left, right = multiply(product.mT, of_polynomial), multiply(of_polynomial, product.mT)
    both = right.add_(left)
    of_product = of_polynomial.mul_(-15 / 4).add_(both, alpha=7 / 4)
    of_product.sub_(multiply(both, product.mT).add_(multiply(product.mT, left)), alpha=1 / 4)
    of_guess = multiply(grad, polynomial.mT).add_(multiply(matrix.mT, of_product))
    return of_guess, multiply(of_product, guess.mT)


class _Tail(torch.autograd.Function):
    """F M of the last rounds, with gradients of M and of the factors of their first Y."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, left: Tensor, right: Tensor, *products: Tensor) -> Tensor:
        """From the right, the last round first."""
        ctx.save_for_backward(columns, left, right, *products)
        return one_by_one(_chain, *products, columns)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Y = left right."""
        columns, left, right, *products = ctx.saved_tensors

        def gradients(
            columns: Tensor, left: Tensor, right: Tensor, grad: Tensor, *products: Tensor
        ) -> tuple[Tensor, ...]:
            grad, of_residues = _thin_gradients(products, columns, grad, 1, columns.dtype)
            of_residue = of_residues.pop()
            for product in reversed(products[:-1]):
                of_residue = _power_backward(product, of_residue).add_(of_residues.pop())
            of_product = of_residue.neg_()
            return grad, multiply(of_product, right.mT), multiply(left.mT, of_product)

        of_parts = one_by_one(gradients, columns, left, right, grads[0], *products)
        return *of_parts, *([None] * len(products))


def _power_backward(product: Tensor, grad: Tensor) -> Tensor:
    """Gradient of R, of R^2 (3 R + R^2) / 4."""
    residue = _from_identity(1, product)
    square = multiply(residue, residue)
    of_last = multiply(square.mT, grad)
    of_square = multiply(grad, torch.add(0.75 * residue, square, alpha=0.25).mT).add_(of_last, alpha=0.25)
    return of_last.mul_(0.75).add_(multiply(of_square, residue.mT)).add_(multiply(residue.mT, of_square))


def _products(first: Tensor, count: int) -> tuple[Tensor, ...]:
    """Y of some rounds from that of the first: Y p(Y) = (13 Y - 15 Q + Q (7 Y - Q)) / 4 with Q = Y^2."""
    products = [first]
    while len(products) < count:
        product = products[-1]
        square = multiply(product, product)
        last = multiply(square, torch.sub(product, square, alpha=1 / 7))
        products.append(last.mul_(7 / 4).add_(product, alpha=13 / 4).sub_(square, alpha=15 / 4))
    return tuple(products)


class _Chain(torch.autograd.Function):
    """F M, with gradients of M, A and c."""

    @staticmethod
    def forward(
        ctx: Any, columns: Tensor, matrix: Tensor, size: Tensor, rounded: torch.dtype, *products: Tensor
    ) -> Tensor:
        """From the right, the last round first."""
        ctx.save_for_backward(matrix, columns, size, *products)
        ctx.rounded = rounded
        return one_by_one(_chain, *products, columns)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Thin products keep their digits, those of m x m in a gradient do not; Y_0 = A A^T / c."""
        matrix, columns, size, *products = ctx.saved_tensors

        def gradients(matrix: Tensor, columns: Tensor, grad: Tensor, *products: Tensor) -> tuple[Tensor, ...]:
            grad, halves = _thin_gradients(products, columns, grad, 1 / 2, ctx.rounded)
            of_product = _gradient_of_first(products, halves, ctx.rounded).to(matrix.dtype)
            return grad, multiply(of_product, matrix), (of_product * products[0]).sum()

        of_columns, of_matrix, of_size = one_by_one(gradients, matrix, columns, grads[0], *products)
        unwanted = [None] * (1 + len(products))
        return of_columns, of_matrix.mul_(2 / size), -of_size.sum() / size, *unwanted


def _chain(*factors: Tensor) -> tuple[Tensor]:
    """F M."""
    *products, columns = factors
    for product in reversed(products):
        columns = _residue(product, _horner(product, columns)[0]).add_(columns)
    return (columns,)


def _residue(product: Tensor, columns: Tensor) -> Tensor:
    """R M."""
    return torch.sub(columns, multiply(product, columns))


def _horner(product: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """V_2 = M + R V_1 and V_1 = M + R M / 4, of which p M = M + R V_2 is made."""
    first = torch.add(columns, _residue(product, columns), alpha=0.25)
    return _residue(product, first).add_(columns), first


def _thin_gradients(
    products: Sequence[Tensor], columns: Tensor, grad: Tensor, share: float, rounded: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """Gradient of M, and a share of that of every R."""
    kept = list[Tensor]()
    for product in reversed(products):
        second, first = _horner(product, columns)
        kept.append(torch.cat([second, first, columns], dim=-1).to(rounded))
        columns = _residue(product, second).add_(columns)
    of_residues = list[Tensor]()
    for product in products:
        once = _residue(product.mT, grad)
        twice = _residue(product.mT, once)
        left = torch.cat([share * grad, share * once, share / 4 * twice], dim=-1).to(rounded)
        of_residues.append(multiply(left, kept.pop().mT))
        grad = torch.add(twice, _residue(product.mT, twice), alpha=0.25).add_(once).add_(grad)
    return grad, of_residues


def _gradient_of_first(products: Sequence[Tensor], halves: list[Tensor], rounded: torch.dtype) -> Tensor:
    """Gradient of Y_0, symmetric."""
    of_residue = _with_transpose(halves.pop())
    for product in reversed(products[:-1]):
        residue = _from_identity(1, product).to(rounded)
        once = multiply(of_residue, residue)
        twice = multiply(once, residue)
        of_square = _with_transpose(once.mul_(0.375).add_(twice, alpha=0.25))
        of_residue = _with_transpose(halves.pop().add_(twice, alpha=0.375).add_(multiply(of_square, residue)))
    return of_residue.neg_()


def _with_transpose(matrix: Tensor) -> Tensor:
    return matrix + matrix.mT
