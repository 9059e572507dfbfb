"""MHIM v1 training written out from its equations, in plain PyTorch and double precision.

It knows nothing of the project's models, kernels, masks or optimiser: parameters are a dictionary, a model is a
function, Adam and the momentum are formulas. No dropout. It is what the project's own steps are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Parameters = dict[str, Tensor]
Forward = Callable[[Parameters, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(parameters, features (N, D)) -> logits (C,), bag embedding (D,), salience (head, N)."""


def gated_abmil(p: Parameters, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e_i = w (relu(V z_i) * sigmoid(U z_i)), a = softmax(e), F = sum_i a_i z_i (section 3.1)."""
    z = torch.relu(x @ p["projection.0.weight"].T + p["projection.0.bias"])
    hidden = torch.relu(z @ p["attention.value.weight"].T) * torch.sigmoid(z @ p["attention.gate.weight"].T)
    e = (hidden @ p["attention.score.weight"].T)[:, 0]
    a = torch.exp(e - e.max()) / torch.exp(e - e.max()).sum()
    bag = (a[:, None] * z).sum(dim=0)
    return p["classifier.weight"] @ bag + p["classifier.bias"], bag, a[None]


def transmil(p: Parameters, x: Tensor, heads: int, landmarks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Class token, Nystrom layer, PPEG, Nystrom layer, norm of the class token (section 3.3)."""
    z = torch.relu(x @ p["projection.0.weight"].T + p["projection.0.bias"])
    tokens = torch.cat([p["class_token"], z])
    out, salience = _nystrom(p, "layer1", tokens, heads, landmarks)
    tokens = tokens + out
    tokens = torch.cat([tokens[:1], _ppeg(p, tokens[1:])])
    out, _ = _nystrom(p, "layer2", tokens, heads, landmarks)
    bag = _norm(p, "norm", tokens + out)[0]
    return p["classifier.weight"] @ bag + p["classifier.bias"], bag, salience


def _norm(p: Parameters, name: str, tokens: Tensor) -> Tensor:
    centred = tokens - tokens.mean(dim=1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(dim=1, keepdim=True) + 1e-5)
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def _nystrom(p: Parameters, layer: str, tokens: Tensor, heads: int, m: int) -> tuple[Tensor, Tensor]:
    """The layer's output for every token, and the class token's attention to the instances (head, N)."""
    count, dim = tokens.shape
    front = (m - count % m) % m
    padded = torch.cat([tokens.new_zeros(front, dim), _norm(p, f"{layer}.norm", tokens)])
    n = len(padded)
    qkv = padded @ p[f"{layer}.attention.to_qkv.weight"].T
    q, k, v = (part.reshape(n, heads, dim // heads).permute(1, 0, 2) for part in qkv.chunk(3, dim=1))
    q = q / math.sqrt(dim // heads)
    q_mean, k_mean = (each.reshape(heads, m, n // m, dim // heads).mean(dim=2) for each in (q, k))
    a1 = torch.softmax(q @ k_mean.transpose(1, 2), dim=2)
    a2 = torch.softmax(q_mean @ k_mean.transpose(1, 2), dim=2)
    a3 = torch.softmax(q_mean @ k.transpose(1, 2), dim=2)
    inverse = a2.transpose(1, 2) / (a2.abs().sum(dim=2).max() * a2.abs().sum(dim=1).max())
    one = torch.eye(m, dtype=tokens.dtype)
    for _ in range(6):
        az = a2 @ inverse
        inverse = inverse @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
    filters = p[f"{layer}.attention.value_convolution.weight"]
    near = F.conv2d(v[None], filters, padding=(filters.shape[2] // 2, 0), groups=heads)[0]
    mixed = (a1 @ inverse @ (a3 @ v) + near).permute(1, 0, 2).reshape(n, dim)
    out = mixed @ p[f"{layer}.attention.to_out.weight"].T + p[f"{layer}.attention.to_out.bias"]
    return out[front:], (a1[:, front : front + 1] @ inverse @ a3)[:, 0, front + 1 :]


def _ppeg(p: Parameters, instances: Tensor) -> Tensor:
    """Square of side ceil(sqrt(N)) filled up with the first instances; below 7 zeros up to 7 x 7, in rows of 7."""
    count, dim = instances.shape
    side = math.ceil(math.sqrt(count))
    cells = torch.cat([instances, instances[: side * side - count]])
    if side < 7:
        cells = torch.cat([cells, cells.new_zeros(49 - len(cells), dim)])
        side = 7
    image = cells.T.reshape(1, dim, side, side)
    total = image
    for size in (7, 5, 3):
        kernel, bias = p[f"position.conv{size}.weight"], p[f"position.conv{size}.bias"]
        total = total + F.conv2d(image, kernel, bias, padding=size // 2, groups=dim)
    return total.reshape(dim, side * side).T[:count]


def masked_high_and_low(salience: Tensor, high: float, low: float) -> list[int]:
    """Kept instances of L-HAM by its definition: votes of the heads, ties to the mean score, then the index."""
    heads, size = salience.shape
    mean = salience.mean(dim=0).tolist()
    hidden: set[int] = set()
    for ratio, sign in ((high, 1), (low, -1)):
        count = math.ceil(size * ratio)
        votes = [0] * size
        for row in salience.tolist():
            for index in sorted(range(size), key=lambda i: (-sign * row[i], i))[:count]:
                votes[index] += 1
        hidden |= set(sorted(range(size), key=lambda i: (-votes[i], -sign * mean[i], i))[:count])
    return [index for index in range(size) if index not in hidden]


@dataclass(frozen=True)
class Told:
    """One step: what the student lost, how its gradient and the two networks stood after it."""

    kept: list[int]
    classification: float
    consistency: float
    logits: Tensor
    gradients: dict[str, float]
    student: dict[str, float]
    teacher: dict[str, float]


def simulate(
    forward: Forward,
    teacher: Parameters,
    student: Parameters,
    bags: Sequence[tuple[Tensor, int]],
    high: float,
    low: float,
    alpha: float,
    momentum: float,
    lr: float,
    weight_decay: float,
) -> list[Told]:
    """Train the student in place, one bag a step, high ratio and momentum on their cosines; the teacher follows.

    Order of a step: teacher, mask, student, backward, Adam, momentum (section 4.1, 4.5).
    """
    first = {name: torch.zeros_like(value) for name, value in student.items()}
    second = {name: torch.zeros_like(value) for name, value in student.items()}
    told = []
    for step, (bag, label) in enumerate(bags):
        wave = math.cos(math.pi * step / len(bags))
        _, target, salience = forward(teacher, bag)
        kept = masked_high_and_low(salience, high * (1 + wave) / 2, low)
        leaves = {name: value.clone().requires_grad_() for name, value in student.items()}
        logits, embedding, _ = forward(leaves, bag[kept])
        classification = torch.logsumexp(logits, dim=0) - logits[label]
        share = torch.exp(target / 0.1 - torch.logsumexp(target / 0.1, dim=0))
        consistency = -(share * (embedding - torch.logsumexp(embedding, dim=0))).sum()
        (classification + alpha * consistency).backward()
        norms = {}
        for name, leaf in leaves.items():
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            norms[name] = float(gradient.norm())
            gradient = gradient + weight_decay * student[name]
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            mean, spread = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            student[name] = student[name] - lr * mean / (spread.sqrt() + 1e-8)
        share_kept = 1 - (1 - momentum) * (1 + wave) / 2
        for name in teacher:
            teacher[name] = share_kept * teacher[name] + (1 - share_kept) * student[name]
        told.append(
            Told(
                kept,
                float(classification.detach()),
                float(consistency.detach()),
                logits.detach(),
                norms,
                {name: float(value.norm()) for name, value in student.items()},
                {name: float(value.norm()) for name, value in teacher.items()},
            )
        )
    return told
