"""Every aggregator once more, in plain NumPy and float64, written as the formulas stand and nothing else.

Takes the tensors of a model under our names. It materialises what the package avoids (n x m attention, three
separate convolutions), so that the two share no shortcut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Tensors = Mapping[str, Array]


def relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x: Array, axis: int = -1) -> Array:
    shifted = np.exp(x - x.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def linear(t: Tensors, name: str, x: Array) -> Array:
    return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", np.zeros(()))


def cross_entropy(logits: Array, label: int) -> float:
    return float(-np.log(softmax(logits)[label]))


def attention_logits(t: Tensors, name: str, z: Array, act: Callable[[Array], Array]) -> Array:
    """(branch, N) before the softmax."""
    hidden = act(linear(t, f"{name}.value", z))
    if f"{name}.gate.weight" in t:
        hidden = hidden * sigmoid(linear(t, f"{name}.gate", z))
    return linear(t, f"{name}.score", hidden).T


def abmil(t: Tensors, x: Array) -> dict[str, Any]:
    z = relu(linear(t, "projection.0", x))
    a = softmax(attention_logits(t, "attention", z, relu))
    embedding = (a[0][:, None] * z).sum(axis=0)
    parts = np.stack([(a[0][:, None] * z) @ w for w in t["classifier.weight"]], axis=1)
    return {
        "logits": linear(t, "classifier", embedding),
        "attention": a,
        "bag_embedding": embedding,
        "instance_probabilities": softmax(parts),
    }


def mean(t: Tensors, x: Array) -> dict[str, Any]:
    z = relu(linear(t, "projection.0", x))
    each = linear(t, "classifier", z)
    return {"logits": each.mean(axis=0), "instance_scores": each, "bag_embedding": z.mean(axis=0)}


def max_instance(t: Tensors, x: Array) -> dict[str, Any]:
    z = relu(linear(t, "projection.0", x))
    each = linear(t, "classifier", z)
    return {"logits": each.max(axis=0), "instance_scores": each, "bag_embedding": z[each.argmax(axis=0)]}


def max_embedding(t: Tensors, x: Array) -> dict[str, Any]:
    z = relu(linear(t, "projection.0", x)).max(axis=0)
    return {"logits": linear(t, "classifier", z), "bag_embedding": z}


def dsmil(t: Tensors, x: Array) -> dict[str, Any]:
    z = relu(linear(t, "projection.0", x))
    scores = linear(t, "instance_classifier", z)
    q = np.tanh(linear(t, "query.2", relu(linear(t, "query.0", z))))
    v = relu(linear(t, "value.1", z))
    critical = scores.argmax(axis=0)
    a = np.stack([softmax(q @ q[i] / math.sqrt(q.shape[1])) for i in critical])
    b = np.stack([(row[:, None] * v).sum(axis=0) for row in a])
    logits = np.array([(w * b).sum() for w in t["fusion.weight"]]) + t["fusion.bias"]
    return {
        "logits": logits,
        "probabilities": 0.5 * softmax(logits) + 0.5 * softmax(scores.max(axis=0)),
        "attention": a,
        "instance_scores": scores,
        "bag_embedding": b,
        "salience": scores.max(axis=1)[None],
        "loss_0": 0.5 * cross_entropy(logits, 0) + 0.5 * cross_entropy(scores.max(axis=0), 0),
    }


def svm(scores: Array, label: int) -> float:
    terms = [s + (index != label) - scores[label] for index, s in enumerate(scores)]
    if scores.max() - scores.min() >= math.log(1000):
        return max(terms)
    return math.log(sum(math.exp(term) for term in terms))


def clam(t: Tensors, x: Array, label: int = 1, subtyping: bool = False) -> dict[str, Any]:
    z = relu(linear(t, "projection.0", x))
    a = softmax(attention_logits(t, "attention", z, np.tanh))
    pooled = a @ z
    weight, bias = t["classifier.weight"], t["classifier.bias"]
    rows = pooled if len(a) > 1 else np.repeat(pooled, len(weight), axis=0)
    logits = np.array([w @ row for w, row in zip(weight, rows, strict=True)]) + bias
    size, losses = min(8, len(z) // 2), []
    for c in range(len(weight)):
        order = np.argsort(a[c if len(a) > 1 else 0])
        chosen = [(i, int(c == label)) for i in order[len(order) - size :]]
        if c == label:
            chosen += [(i, 0) for i in order[:size]]
        elif not subtyping:
            continue
        if chosen:
            losses.append(np.mean([svm(linear(t, f"instance_classifiers.{c}", z[i]), y) for i, y in chosen]))
    instance = float(np.mean(losses)) if losses else 0.0
    return {
        "logits": logits,
        "attention": a,
        "bag_embedding": pooled if len(a) > 1 else pooled[0],
        f"loss_{label}": 0.7 * cross_entropy(logits, label) + 0.3 * instance,
    }


def dtfd(t: Tensors, x: Array, distillation: str, groups: int = 4) -> dict[str, Any]:
    z = relu(linear(t, "projection.0", x))
    raw = attention_logits(t, "tier1.attention", z, np.tanh)[0]
    features, tier1, probabilities = [], [], np.zeros((len(z), len(t["tier1.classifier.bias"])))
    for index in np.array_split(np.arange(len(z)), min(groups, len(z))):
        a = softmax(raw[index])
        parts = a[:, None] * z[index]
        probabilities[index] = softmax(parts @ t["tier1.classifier.weight"].T)
        tier1.append(linear(t, "tier1.classifier", parts.sum(axis=0)))
        ranked = index[np.argsort(-probabilities[index][:, -1], kind="stable")]
        handed = {
            "afs": [parts.sum(axis=0)],
            "maxs": [z[ranked[0]]],
            "maxmins": [z[ranked[0]], z[ranked[-1]]],
            "mas": [z[index[a.argmax()]]],
        }
        features += handed[distillation]
    f = np.stack(features)
    b = softmax(attention_logits(t, "tier2.attention", f, np.tanh))
    logits = linear(t, "tier2.classifier", (b @ f)[0])
    tier1_loss = float(np.mean([cross_entropy(row, 1) for row in tier1]))
    return {
        "logits": logits,
        "instance_probabilities": probabilities,
        "bag_embedding": (b @ f)[0],
        "loss_1": tier1_loss + cross_entropy(logits, 1),
    }


def layer_norm(t: Tensors, name: str, x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]


def nystrom(t: Tensors, name: str, x: Array, landmarks: int) -> tuple[Array, Array, Array]:
    """Output (n, D), class-token attention (heads, n) of the padded row, values (heads, n, d)."""
    n, dim = x.shape
    heads = len(t[f"{name}.value_convolution.weight"])
    padded = np.concatenate([np.zeros((-n % landmarks, dim)), x])
    front = len(padded) - n
    q, k, v = (
        part.reshape(len(padded), heads, -1).transpose(1, 0, 2)
        for part in np.split(padded @ t[f"{name}.to_qkv.weight"].T, 3, axis=1)
    )
    q = q / math.sqrt(dim // heads)
    group = len(padded) // landmarks
    ql, kl = (np.stack([m[:, g * group : (g + 1) * group].mean(axis=1) for g in range(landmarks)], 1) for m in (q, k))
    a1, a2, a3 = (softmax(left @ right.transpose(0, 2, 1)) for left, right in ((q, kl), (ql, kl), (ql, k)))
    z = a2.transpose(0, 2, 1) / (np.abs(a2).sum(axis=2).max() * np.abs(a2).sum(axis=1).max())
    eye = np.eye(landmarks)
    for _ in range(6):
        z = 0.25 * z @ (13 * eye - a2 @ z @ (15 * eye - a2 @ z @ (7 * eye - a2 @ z)))
    whole = a1 @ z @ a3
    out = whole @ v
    kernel = t[f"{name}.value_convolution.weight"][:, 0, :, 0]
    half = kernel.shape[1] // 2
    for head in range(heads):
        wide = np.pad(v[head], ((half, half), (0, 0)))
        out[head] += sum(kernel[head, j] * wide[j : j + len(padded)] for j in range(kernel.shape[1]))
    merged = linear(t, f"{name}.to_out", out.transpose(1, 0, 2).reshape(len(padded), dim))
    return merged[front:], whole[:, front, front:], v[:, front:]


def convolve(image: Array, kernel: Array, bias: Array) -> Array:
    """Depth-wise (side, side, D)."""
    size = kernel.shape[-1]
    wide = np.pad(image, ((size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    side = len(image)
    out = np.zeros_like(image) + bias
    for i in range(size):
        for j in range(size):
            out += wide[i : i + side, j : j + side] * kernel[:, 0, i, j]
    return out


def wrap(x: Array) -> Array:
    side = math.ceil(math.sqrt(len(x)))
    return np.concatenate([x, x[: side * side - len(x)]])


def position(t: Tensors, x: Array, fills: bool) -> Array:
    cells = wrap(x)
    side = math.isqrt(len(cells))
    if fills and side < 7:
        cells, side = np.concatenate([cells, np.zeros((49 - len(cells), x.shape[1]))]), 7
    image = cells.reshape(side, side, -1)
    parts = [
        convolve(image, t[f"position.{name}.weight"], t[f"position.{name}.bias"])
        for name in ("conv7", "conv5", "conv3")
    ]
    return (image + sum(parts)).reshape(side * side, -1)[: len(x)]


def transmil(t: Tensors, x: Array, landmarks: int, padding: str) -> dict[str, Any]:
    z = relu(linear(t, "projection.0", x))
    count = len(z)
    if padding == "class":
        z = wrap(z)
    h = np.concatenate([t["class_token"], z])
    out, row1, values = nystrom(t, "layer1.attention", layer_norm(t, "layer1.norm", h), landmarks)
    h = h + out
    h = np.concatenate([h[:1], position(t, h[1:], padding == "encoder")])
    out, row2, _ = nystrom(t, "layer2.attention", layer_norm(t, "layer2.norm", h), landmarks)
    embedding = layer_norm(t, "norm", (h + out)[:1])[0]
    rows = [row[:, 1 : count + 1] for row in (row1, row2)]
    shares = np.concatenate(list(rows[0][..., None] * values[:, 1 : count + 1]), axis=1)
    scores = linear(t, "layer1.attention.to_out", shares) @ t["classifier.weight"].T
    return {
        "logits": linear(t, "classifier", embedding),
        "bag_embedding": embedding,
        "attention_layer1": rows[0],
        "attention_layer2": rows[1],
        "instance_probabilities": softmax(scores),
    }


CASES: dict[str, tuple[dict[str, Any], Callable[[Tensors, Array], dict[str, Any]]]] = {
    "abmil": ({"name": "abmil", "attention_dim": 5}, abmil),
    "abmil-gated": ({"name": "abmil", "attention_dim": 5, "gated": True, "attention_bias": True}, abmil),
    "mean": ({"name": "mean"}, mean),
    "max": ({"name": "max"}, max_instance),
    "max-embedding": ({"name": "max", "level": "embedding"}, max_embedding),
    "dsmil": ({"name": "dsmil", "query_dim": 6}, dsmil),
    "clam-sb": ({"name": "clam-sb", "attention_dim": 6}, clam),
    "clam-mb": (
        {"name": "clam-mb", "attention_dim": 6, "subtyping": True},
        lambda t, x: clam(t, x, label=2, subtyping=True),
    ),
    **{
        f"dtfd-{kind}": (
            {"name": "dtfd", "attention_dim": 5, "distillation": kind, "split": "contiguous"},
            lambda t, x, kind=kind: dtfd(t, x, kind),
        )
        for kind in ("afs", "maxs", "maxmins", "mas")
    },
    **{
        f"transmil-{padding}": (
            {"name": "transmil", "heads": 2, "landmarks": 4, "padding": padding},
            lambda t, x, padding=padding: transmil(t, x, 4, padding),
        )
        for padding in ("encoder", "class")
    },
}
"""Name -> (configuration, formulas). Every model has tokens of width 8, 6 features and 3 classes."""

DIM, IN_DIM, CLASSES = 8, 6, 3
