"""Does rounding cost accuracy: test AUROC after training in float32, with the teacher in bfloat16, and all in it.

Bags of noise in which a tenth of the instances of every second bag carry a faint direction, fainter for TransMIL, so
that neither finds all; one draw of bags, weights and masks a seed, the same for every precision.

    python benchmarks/learning_precision.py --seeds 5
"""

from __future__ import annotations

import argparse
import statistics

import torch
from learning_step import VARIANTS
from sklearn.metrics import roc_auc_score

from mhim.bench.step import make_method
from mhim.heap import prepare_memory
from mhim.methods import Step
from mhim.training.step import BagStep, adam

WIDTH, SIZE, CARRIERS = 64, 400, 40
SHIFT = {"abmil": 2.0, "transmil": 1.2}
"""Times a direction of length 1, in standard deviations of a feature."""


def bags(count: int, seed: int, shift: float) -> list[tuple[torch.Tensor, int]]:
    """Bags and labels; the first instances of a positive bag are shifted."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
    found = []
    for index in range(count):
        features = torch.randn(SIZE, WIDTH, generator=generator)
        if index % 2:
            features[:CARRIERS] += shift * direction
        found.append((features, index % 2))
    return found


def score(model: str, variant: str, seed: int, epochs: int) -> float:
    """Test AUROC of one training."""
    precision, teacher = VARIANTS[variant]
    name = model.removeprefix("mhim-")
    options = {"name": name, "dim": 64} | ({"heads": 2, "landmarks": 16} if name == "transmil" else {})
    method = {"name": "mhim-v1", "teacher_precision": teacher, "momentum": 0.99}
    chosen = method if model.startswith("mhim-") else {"name": "supervised"}
    trained = make_method(options, chosen, WIDTH, 2, seed, torch.device("cpu"))
    stepping, train = BagStep(trained, adam(trained, 1e-3, 1e-5), precision), bags(60, 100 + seed, SHIFT[name])
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for index in range(epochs * len(train)):
        features, label = train[int(torch.randint(len(train), (), generator=generator))]
        stepping.take([features], [torch.tensor(label)], Step(index, epochs * len(train), generator))
    trained.model.eval()
    with torch.inference_mode():
        seen = [
            (float(trained.model(features).probabilities[1]), label) for features, label in bags(200, 999, SHIFT[name])
        ]
    return float(roc_auc_score([label for _, label in seen], [value for value, _ in seen]))


def main() -> None:
    """Mean and spread over seeds, and the mean paired difference from float32."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["abmil", "mhim-abmil", "transmil", "mhim-transmil"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prepare_memory()
    for model in args.models:
        scores = {}
        for variant in VARIANTS:
            if variant != "teacher" or model.startswith("mhim-"):
                scores[variant] = [score(model, variant, seed, args.epochs) for seed in range(args.seeds)]
        cells = []
        for variant, found in scores.items():
            change = [one - other for one, other in zip(found, scores["float32"], strict=True)]
            spread = statistics.stdev(found)
            cells.append(f"{variant} {statistics.mean(found):.3f} sd {spread:.3f} ({statistics.mean(change):+.3f})")
        print(f"{model:14s} {'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
