"""Products with the iterated pseudo-inverse of Nyström attention; in low precision it is never formed.

With A the landmarks' attention (m x m), c its largest row sum times its largest column sum, and Z_0 = A^T / c, a
round is Z <- Z p(Y), Y = A Z, p(Y) = (13 - 15 Y + 7 Y^2 - Y^3) / 4.

Formed, that is four products of m x m a round and ten for its gradient. The order of the operations matters: forms
with fewer products lose a digit of float32 where the landmarks are nearly alike, as in a bag of one instance.

Factored, it is A^T F / c with F = p(Y_0) p(Y_1) .., all polynomials of the symmetric Y_0 = A A^T / c. Y <- Y p(Y)
needs two products, and F M is taken from the right. In R = I - Y, where p = I + R + R^2 + R^3 / 4 and
R <- R^3 (3 + R) / 4 have no differences, the gradient of a round is symmetric and needs three products, which may be
rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mhim.kernels.gemm import multiply, one_by_one


def pseudo_inverse(matrix: Float[Tensor, "heads m m"], iterations: int) -> Float[Tensor, "heads m m"]:
    """Iterated Moore-Penrose inverse (Xiong et al., AAAI 2021, section 3.3, equation 11).

    Starts at A^T / (largest row sum x largest column sum of |A|), both taken over all heads together, and
    repeats Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4.
    """
    guess = matrix.mT / _largest_sums(matrix)
    for _ in range(iterations):
        guess = _Round.apply(matrix, guess)
    return guess


@dataclass(frozen=True)
class Formed:
    """The pseudo-inverse itself.

    Attributes:
        inverse: A+.
    """

    inverse: Float[Tensor, "heads m m"]

    def times(self, columns: Float[Tensor, "heads m k"]) -> Float[Tensor, "heads m k"]:
        """A+ M."""
        return self.inverse @ columns

    def after(self, rows: Float[Tensor, "heads k m"]) -> Float[Tensor, "heads k m"]:
        """M A+."""
        return rows @ self.inverse


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
    if rounded is None:
        return Formed(pseudo_inverse(matrix, iterations))
    size = _largest_sums(matrix)
    with torch.no_grad():
        products = one_by_one(lambda part: _products(part, size, iterations), matrix.detach())
    return Factored(matrix, size, products, rounded)


def _largest_sums(matrix: Float[Tensor, "heads m m"]) -> Float[Tensor, ""]:
    size = matrix.abs()
    return size.sum(dim=-1).max() * size.sum(dim=-2).max()


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


def _products(matrix: Tensor, size: Tensor, iterations: int) -> tuple[Tensor, ...]:
    """Y of every round: Y p(Y) = (13 Y - 15 Q + Q (7 Y - Q)) / 4 with Q = Y^2."""
    products = [multiply(matrix, matrix.mT).div_(size)]
    while len(products) < iterations:
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
            grad, halves = _thin_gradients(products, columns, grad, ctx.rounded)
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
    products: Sequence[Tensor], columns: Tensor, grad: Tensor, rounded: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """Gradient of M, and of every R what becomes its gradient once its transpose is added."""
    kept = list[Tensor]()
    for product in reversed(products):
        second, first = _horner(product, columns)
        kept.append(torch.cat([second, first, columns], dim=-1).to(rounded))
        columns = _residue(product, second).add_(columns)
    halves = list[Tensor]()
    for product in products:
        once = _residue(product, grad)
        twice = _residue(product, once)
        left = torch.cat([0.5 * grad, 0.5 * once, 0.125 * twice], dim=-1).to(rounded)
        halves.append(multiply(left, kept.pop().mT))
        grad = torch.add(twice, _residue(product, twice), alpha=0.25).add_(once).add_(grad)
    return grad, halves


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
