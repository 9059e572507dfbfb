# ruff: noqa: D101, D102, D103  (each class is named as in the spec, which says what it computes)
"""A plain reading of the published training steps, as the reference programs take them (spec sections 2 to 4).

Written from the description, for comparison alone: every instance is projected and masked afterwards, index sets
are built in Python, the loss is read every step, Adam and the teacher's mean are the plain ones, TransMIL forms
every matrix as its equations stand.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def front(in_dim: int, bias: bool = True, dropout: float = 0.25) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, 512, bias=bias), nn.ReLU(), nn.Dropout(dropout))


class ABMIL(nn.Module):
    def __init__(self, in_dim: int, classes: int) -> None:
        super().__init__()
        self.front = front(in_dim)
        self.score = nn.Sequential(nn.Linear(512, 128, bias=False), nn.ReLU(), nn.Linear(128, 1, bias=False))
        self.head = nn.Linear(512, classes)

    def tail(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.score(z).T.softmax(dim=-1)
        bag = attention @ z
        return self.head(bag), attention, bag

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(self.tail(self.front(x))[0], label)


class CLAMMB(nn.Module):
    def __init__(self, in_dim: int, classes: int) -> None:
        super().__init__()
        self.front = front(in_dim)
        self.a = nn.Sequential(nn.Linear(512, 256), nn.Tanh(), nn.Dropout(0.25))
        self.b = nn.Sequential(nn.Linear(512, 256), nn.Sigmoid(), nn.Dropout(0.25))
        self.score = nn.Linear(256, classes)
        self.heads = nn.ModuleList(nn.Linear(512, 1) for _ in range(classes))
        self.instance = nn.ModuleList(nn.Linear(512, 2) for _ in range(classes))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        z = self.front(x)
        attention = self.score(self.a(z) * self.b(z)).T.softmax(dim=-1)
        index = int(label)
        row = attention[index]
        top, bottom = z[row.topk(8)[1]], z[(-row).topk(8)[1]]
        targets = torch.cat([torch.ones(8), torch.zeros(8)]).long()
        scores = self.instance[index](torch.cat([top, bottom]))
        margin = scores + (1 - F.one_hot(targets, 2)) - scores.gather(1, targets[:, None])
        instance = margin.logsumexp(dim=1).mean()
        bags = attention @ z
        logits = torch.cat([head(bags[c : c + 1]) for c, head in enumerate(self.heads)], dim=1)
        return 0.7 * F.cross_entropy(logits, label) + 0.3 * instance


class DTFD(nn.Module):
    def __init__(self, in_dim: int, classes: int) -> None:
        super().__init__()
        self.front = front(in_dim, bias=False)
        tier = lambda: nn.ModuleDict(  # noqa: E731
            {"v": nn.Linear(512, 128), "u": nn.Linear(512, 128), "w": nn.Linear(128, 1), "c": nn.Linear(512, classes)}
        )
        self.tier1, self.tier2 = tier(), tier()

    @staticmethod
    def attend(tier: nn.ModuleDict, z: Tensor) -> Tensor:
        return tier["w"](tier["v"](z).tanh() * tier["u"](z).sigmoid()).T

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        places = np.array_split(torch.randperm(len(x)).numpy(), 4)
        z = self.front(x)
        raw = self.attend(self.tier1, z)[0]
        loss, features = torch.zeros(()), []
        for place in places:
            index = torch.tensor(place)
            part, share = z[index], raw[index].softmax(dim=0)
            weighted = part * share[:, None]
            pooled = weighted.sum(dim=0, keepdim=True)
            loss = loss + F.cross_entropy(self.tier1["c"](pooled), label) / len(places)
            cam = (weighted @ self.tier1["c"].weight.T).softmax(dim=1)
            cam[:, -1].sort(descending=True)
            features.append(pooled)
        second = torch.cat(features).detach()
        bag = self.attend(self.tier2, second).softmax(dim=-1) @ second
        return loss + F.cross_entropy(self.tier2["c"](bag), label)


class DSMIL(nn.Module):
    def __init__(self, in_dim: int, classes: int) -> None:
        super().__init__()
        self.front = front(in_dim)
        self.instance = nn.Linear(512, classes)
        self.query = nn.Sequential(nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh())
        self.value = nn.Sequential(nn.Dropout(0.0), nn.Linear(512, 512), nn.ReLU())
        self.conv = nn.Conv1d(classes, classes, 512)

    def tail(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scores = self.instance(z)
        values, queries = self.value(z), self.query(z)
        order = scores.sort(dim=0, descending=True)[1]
        critical = self.query(z[order[0]])
        attention = (queries @ critical.T / math.sqrt(queries.shape[1])).softmax(dim=0)
        bag = attention.T @ values
        return self.conv(bag[None])[..., 0], scores.max(dim=0)[0][None], scores, bag

    def loss(self, bag: Tensor, top: Tensor, label: Tensor) -> Tensor:
        return 0.5 * F.cross_entropy(bag, label) + 0.5 * F.cross_entropy(top, label)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        bag, top, _, _ = self.tail(self.front(x))
        return self.loss(bag, top, label)


class Nystrom(nn.Module):
    """softmax(q k_L^T) A+ softmax(q_L k^T) v, every matrix formed, over all tokens."""

    def __init__(self, dim: int = 512, heads: int = 8, landmarks: int = 256) -> None:
        super().__init__()
        self.heads, self.landmarks, self.dim = heads, landmarks, dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.1))
        self.conv = nn.Conv2d(heads, heads, (33, 1), padding=(16, 0), groups=heads, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        count = x.shape[1]
        padding = -count % self.landmarks
        x = F.pad(x, (0, 0, padding, 0))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        q = q * (self.dim // self.heads) ** -0.5
        group = x.shape[1] // self.landmarks
        ql, kl = (part.unflatten(2, (self.landmarks, group)).sum(dim=3) / group for part in (q, k))
        one = (q @ kl.transpose(-1, -2)).softmax(dim=-1)
        two = (ql @ kl.transpose(-1, -2)).softmax(dim=-1)
        three = (ql @ k.transpose(-1, -2)).softmax(dim=-1)
        inverse = self.inverse(two)
        out = (one @ inverse) @ (three @ v) + self.conv(v)
        row = (one[:, :, padding : padding + 1] @ inverse) @ three
        out = self.out(out.transpose(1, 2).flatten(2))
        return out[:, -count:], row[0, :, 0, padding + 1 :]

    @staticmethod
    def inverse(a: Tensor) -> Tensor:
        size = a.abs()
        z = a.transpose(-1, -2) / (size.sum(dim=-1).max() * size.sum(dim=-2).max())
        eye = torch.eye(a.shape[-1])
        for _ in range(6):
            az = a @ z
            z = 0.25 * z @ (13 * eye - (az @ (15 * eye - (az @ (7 * eye - az)))))
        return z


class TransMIL(nn.Module):
    def __init__(self, in_dim: int, classes: int) -> None:
        super().__init__()
        self.front = front(in_dim)
        self.token = nn.Parameter(torch.randn(1, 1, 512))
        self.norms = nn.ModuleList(nn.LayerNorm(512) for _ in range(3))
        self.layers = nn.ModuleList(Nystrom() for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(512, 512, k, padding=k // 2, groups=512) for k in (7, 5, 3))
        self.head = nn.Linear(512, classes)

    def tail(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = len(z)
        x = torch.cat([self.token, z[None]], dim=1)
        y, row = self.layers[0](self.norms[0](x))
        x = x + y
        side = math.ceil(math.sqrt(count))
        body = torch.cat([x[:, 1:], x[:, 1 : 1 + side * side - count]], dim=1)
        image = body.transpose(1, 2).reshape(1, 512, side, side)
        image = image + sum(conv(image) for conv in self.convs)
        x = torch.cat([x[:, :1], image.flatten(2).transpose(1, 2)[:, :count]], dim=1)
        x = x + self.layers[1](self.norms[1](x))[0]
        bag = self.norms[2](x)[:, 0]
        return self.head(bag), row, bag

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(self.tail(self.front(x))[0], label)


class MHIM(nn.Module):
    """Project all, mask by index sets, pool the rest; teacher by a loop over parameters."""

    def __init__(self, student: nn.Module, ratios: tuple[float, float, float], momentum: float) -> None:
        super().__init__()
        self.student, self.teacher = student, copy.deepcopy(student).requires_grad_(False).eval()
        (self.random, self.low, self.high), self.momentum = ratios, momentum

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        with torch.no_grad():
            seen = self.teacher.tail(self.teacher.front(x))
        salience, bag = (seen[2].amax(dim=1)[None], seen[3]) if isinstance(self.student, DSMIL) else seen[1:]
        keep = self.keep(salience, len(x))
        z = self.student.front(x)[keep]
        out = self.student.tail(z)
        if isinstance(self.student, DSMIL):
            loss, own = self.student.loss(out[0], out[1], label), out[3]
        else:
            loss, own = F.cross_entropy(out[0], label), out[2]
        distance = -((bag / 0.1).softmax(dim=-1) * own.log_softmax(dim=-1)).sum(dim=-1).mean()
        return loss + 0.1 * distance

    def keep(self, salience: Tensor, count: int) -> Tensor:
        heads = len(salience)
        masked: set[int] = set(torch.randperm(count)[: math.ceil(count * self.random)].tolist())
        for ratio, largest in ((self.low, False), (self.high / 0.5, True)):
            k = math.ceil(count * ratio)
            if k:
                votes = torch.bincount(salience.topk(k, largest=largest)[1].flatten(), minlength=count)
                chosen = (salience[0] if heads == 1 else votes).topk(k, largest=largest or heads > 1)[1]
                if largest:
                    chosen = chosen[torch.randperm(k)[: math.ceil(k * 0.5)]]
                masked |= set(chosen.tolist())
        return torch.tensor(sorted(set(range(count)) - masked))

    def follow(self) -> None:
        for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            old.data = old.data * self.momentum + new.data * (1 - self.momentum)


BUILD: dict[str, Callable[[int, int], nn.Module]] = {
    "abmil": ABMIL,
    "clam-mb": CLAMMB,
    "dtfd": DTFD,
    "dsmil": DSMIL,
    "transmil": TransMIL,
    "mhim-abmil": lambda d, c: MHIM(ABMIL(d, c), (0.5, 0.0, 0.01), 0.9999),
    "mhim-dsmil": lambda d, c: MHIM(DSMIL(d, c), (0.5, 0.0, 0.01), 0.9999),
    "mhim-transmil": lambda d, c: MHIM(TransMIL(d, c), (0.0, 0.8, 0.03), 0.9999),
}


def reference_step(name: str, in_dim: int, classes: int, seed: int) -> Callable[[Tensor, int], float]:
    """step(features, label) -> loss of a reference program, as published."""
    torch.manual_seed(seed)
    model = BUILD[name](in_dim, classes).train()
    if isinstance(model, MHIM):
        model.teacher.eval()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=1e-5)

    def step(features: Tensor, label: int) -> float:
        loss = model(features, torch.tensor([label]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if isinstance(model, MHIM):
            model.follow()
        return float(loss.detach())

    return step


def reference_forward(name: str, in_dim: int, classes: int) -> Callable[[Tensor], Tensor]:
    """forward(features) -> logits of a reference program in evaluation."""
    model = BUILD[name](in_dim, classes).eval()

    @torch.no_grad()
    def forward(features: Tensor) -> Tensor:
        return model.tail(model.front(features))[0]

    return forward
