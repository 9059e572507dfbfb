"""Products with the pseudo-inverse equal those with its plain form, value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mhim.kernels import Factored, inverse, pseudo_inverse

HEADS = 3


def landmarks(size: int, instances: int, sharpness: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The landmarks' attention among themselves and what they see of ``instances`` tokens, zeros in front."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(instances, 16, generator=generator, dtype=torch.float64)
    tokens = torch.cat([tokens.new_zeros(-instances % size, 16), tokens])
    query, key, value = (tokens @ torch.randn(HEADS, 16, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    query = query * sharpness / 16
    of_query, of_key = (part.unflatten(1, (size, -1)).mean(dim=2) for part in (query, key))
    return (of_query @ of_key.mT).softmax(dim=-1), (of_query @ key.mT).softmax(dim=-1) @ value


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def gradients(product, *inputs: Tensor) -> list[Tensor]:
    """Gradients of a weighted sum of the product."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    out = product(*leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(torch.autograd.grad((out * weights.to(out.dtype)).sum(), leaves))


def test_the_plain_form_inverts() -> None:
    matrix = (torch.eye(6, dtype=torch.float64) * 3 + torch.rand(2, 6, 6, dtype=torch.float64)).softmax(dim=-1)
    product = pseudo_inverse(matrix, 12) @ matrix
    torch.testing.assert_close(product, torch.eye(6, dtype=torch.float64).expand(2, 6, 6), rtol=0, atol=1e-9)


def factored(matrix: Tensor, iterations: int, rounded: torch.dtype) -> Factored:
    found = inverse(matrix, iterations, rounded)
    assert isinstance(found, Factored)
    return found


@pytest.mark.parametrize("iterations", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [5, 100])  # a batch at once, and one by one
def test_the_formed_form_equals_the_plain_one(size: int, iterations: int) -> None:
    matrix, columns = landmarks(size, 3 * size + 1)
    plain, form = pseudo_inverse(matrix, iterations), inverse(matrix, iterations, None)
    torch.testing.assert_close(form.times(columns), plain @ columns, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(form.after(columns.mT), columns.mT @ plain, rtol=1e-9, atol=1e-11)
    for product, plainly, sides in (
        (lambda a, m: inverse(a, iterations, None).times(m), lambda a, m: pseudo_inverse(a, iterations) @ m, columns),
        (
            lambda a, m: inverse(a, iterations, None).after(m),
            lambda a, m: m @ pseudo_inverse(a, iterations),
            columns.mT,
        ),
    ):
        for found, expected in zip(gradients(product, matrix, sides), gradients(plainly, matrix, sides), strict=True):
            assert relative(found, expected) < 1e-9


@pytest.mark.parametrize("instances", [1, 2, 40, 3000])
@pytest.mark.parametrize("sharpness", [1.0, 6.0])
def test_the_last_rounds_lose_nothing_to_the_plain_form(instances: int, sharpness: float) -> None:
    """In float32, values and gradients are as near to float64's as the plain form's; a bag of one is the hard case."""
    matrix, columns = landmarks(128, instances, sharpness)
    exact = [pseudo_inverse(matrix, 6) @ columns, *gradients(lambda a, m: pseudo_inverse(a, 6) @ m, matrix, columns)]
    low, thin = matrix.float(), columns.float()
    for found, plain, truth in zip(
        [inverse(low, 6, None).times(thin), *gradients(lambda a, m: inverse(a, 6, None).times(m), low, thin)],
        [pseudo_inverse(low, 6) @ thin, *gradients(lambda a, m: pseudo_inverse(a, 6) @ m, low, thin)],
        exact,
        strict=True,
    ):
        assert relative(found, truth) < 2 * relative(plain, truth) + 1e-6


@pytest.mark.parametrize("iterations", [1, 2, 6])
@pytest.mark.parametrize("size", [5, 100])  # a batch at once, and one by one
def test_the_factored_form_equals_the_formed_one(size: int, iterations: int) -> None:
    matrix, columns = landmarks(size, 3 * size + 1)
    formed, form = inverse(matrix, iterations, None), factored(matrix, iterations, torch.float64)
    for name, sides in (("times", columns), ("after", columns.mT), ("after", columns.mT[:, :1])):
        torch.testing.assert_close(getattr(form, name)(sides), getattr(formed, name)(sides), rtol=1e-8, atol=1e-10)
        for found, expected in zip(
            gradients(lambda a, m, name=name: getattr(inverse(a, iterations, torch.float64), name)(m), matrix, sides),
            gradients(lambda a, m, name=name: getattr(inverse(a, iterations, None), name)(m), matrix, sides),
            strict=True,
        ):
            assert relative(found, expected) < 1e-7


@pytest.mark.parametrize("rounded", [None, torch.float64])
def test_gradients_agree_with_differences(rounded: torch.dtype | None) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(2, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    columns = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, m: inverse(a, 4, rounded).times(m), (matrix, columns))
    assert torch.autograd.gradcheck(lambda a, m: inverse(a, 4, rounded).after(m.mT), (matrix, columns))


@pytest.mark.parametrize("instances", [1, 2, 40, 3000])
@pytest.mark.parametrize("sharpness", [1.0, 6.0])
def test_what_rounding_costs_the_factored_form(instances: int, sharpness: float) -> None:
    """A bag of one instance has landmarks that are alike, but for one."""
    matrix, columns = (part.float() for part in landmarks(128, instances, sharpness))
    exact, wide = (pseudo_inverse(matrix.double(), 6), columns.double())
    form = factored(matrix, 6, torch.bfloat16)
    assert relative(form.times(columns), exact @ wide) < 1e-3
    assert relative(form.after(columns.mT[:, :1]), wide.mT[:, :1] @ exact) < 1e-3
    expected = gradients(lambda a, m: pseudo_inverse(a, 6) @ m, matrix.double(), wide)
    found = gradients(lambda a, m: inverse(a, 6, torch.bfloat16).times(m), matrix, columns)
    assert relative(found[0], expected[0]) < 0.2
    assert relative(found[1], expected[1]) < 1e-3
