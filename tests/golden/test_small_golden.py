"""The committed golden numbers: random weights, plain formulas, no other file needed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mil_oracle
import numpy as np
import pytest
import torch

from mhim.models import MILModel, MILOutput, models

FILE = Path(__file__).with_name("small.npz")


def read() -> dict[str, np.ndarray]:
    with np.load(FILE) as file:
        index, numbers = json.loads(str(file["index"])), file["numbers"]
    ends = np.cumsum([math.prod(shape) for _, shape in index])
    parts = np.split(numbers, ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(index, parts, strict=True)}


STORED = read()
SIZES = sorted(int(key.split("/")[1]) for key in STORED if key.startswith("bag/"))


def weights(case):
    prefix = f"{case}/weights/"
    return {key.removeprefix(prefix): value for key, value in STORED.items() if key.startswith(prefix)}


def build(case, tensors, dtype) -> MILModel:
    options, _ = mil_oracle.CASES[case]
    config = models.parse({**options, "dim": mil_oracle.DIM})
    model = models.build(config, mil_oracle.IN_DIM, mil_oracle.CLASSES).to(dtype).eval()
    model.load_state_dict({key: torch.from_numpy(value).to(dtype) for key, value in tensors.items()})
    return model


def quantity(model: MILModel, output: MILOutput, name: str) -> np.ndarray:
    if name.startswith("loss_"):
        return sum(model.losses(output, torch.tensor(int(name[5:]))).values()).detach().numpy()
    value = output.extras[name] if name in output.extras else getattr(output, name)
    return value.detach().numpy()


def expected_of(case, n):
    prefix = f"{case}/{n}/"
    return {key.removeprefix(prefix): value for key, value in STORED.items() if key.startswith(prefix)}


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("case", mil_oracle.CASES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_stored_numbers(case, n, dtype, rtol):
    """Every stored quantity, relative to its largest entry."""
    model = build(case, weights(case), dtype)
    output = model(torch.from_numpy(STORED[f"bag/{n}"]))
    expected = expected_of(case, n)
    assert expected
    for name, value in expected.items():
        scale = max(1e-3, np.abs(value).max())
        np.testing.assert_allclose(quantity(model, output, name), value, rtol=0, atol=rtol * scale, err_msg=name)


@pytest.mark.parametrize("case", mil_oracle.CASES)
def test_stored_numbers_are_what_the_formulas_give(case):
    """The file is not stale: the formulas beside it still give its numbers."""
    for n in SIZES:
        found = mil_oracle.CASES[case][1](weights(case), STORED[f"bag/{n}"])
        expected = expected_of(case, n)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("case", mil_oracle.CASES)
@pytest.mark.parametrize("n", [3, 4, 15, 16, 17, 32, 36, 37, 48, 49, 63, 64, 65, 200])
def test_other_bags(case, n):
    """Formulas and package agree on sizes around squares, 7 x 7 and multiples of the landmarks."""
    random = np.random.default_rng(n)
    bag = random.normal(size=(n, mil_oracle.IN_DIM))
    tensors = weights(case)
    model = build(case, tensors, torch.float64)
    output = model(torch.from_numpy(bag))
    for name, value in mil_oracle.CASES[case][1](tensors, bag).items():
        scale = max(1e-3, np.abs(value).max())
        np.testing.assert_allclose(quantity(model, output, name), value, rtol=0, atol=1e-9 * scale, err_msg=name)


def test_the_file_is_small():
    assert FILE.stat().st_size < 100_000
