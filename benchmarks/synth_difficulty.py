"""How hard is a cohort with known instance truth? Cross-validated by case, on its encoded features.

python benchmarks/synth_difficulty.py demo/cohort/cohort.csv demo/features
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mhim.bag import load_bag
from mhim.cohort import read_cohort

TOP_TILES = 3


def linear(weight: str | None = None):
    """A standardised, strongly regularised linear classifier."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight=weight, max_iter=1000))


def main(table: Path, folder: Path) -> None:
    """Print the table."""
    cohort = read_cohort(table)
    bags = [load_bag(folder / f"{row.slide_id}.h5") for row in cohort]
    features = [bag.features.astype(np.float64) for bag in bags]
    truth = [np.zeros(len(b)) if b.annotation_fraction is None else b.annotation_fraction for b in bags]
    inside = [part >= 0.5 for part in truth]
    labels = np.array([cohort.label_index(row) for row in cohort])
    cases = [row.case_id for row in cohort]
    means, maxima = np.stack([f.mean(axis=0) for f in features]), np.stack([f.max(axis=0) for f in features])
    scores = {name: np.zeros(len(bags)) for name in ("mean", "max", "tiles")}
    tile_auroc, tile_precision = [], []
    for train, test in GroupKFold(4).split(labels, groups=cases):
        for name, table_ in (("mean", means), ("max", maxima)):
            scores[name][test] = linear().fit(table_[train], labels[train]).predict_proba(table_[test])[:, 1]
        rows, marks = np.concatenate([features[i] for i in train]), np.concatenate([inside[i] for i in train])
        oracle = linear("balanced").fit(rows, marks)
        for index in test:
            tile_scores = oracle.predict_proba(features[index])[:, 1]
            scores["tiles"][index] = np.sort(tile_scores)[-TOP_TILES:].mean()
            if inside[index].any():
                tile_auroc.append(roc_auc_score(inside[index], tile_scores))
                tile_precision.append(average_precision_score(inside[index], tile_scores))
    shares = [part.mean() for part, label in zip(inside, labels, strict=True) if label]
    print(f"tiles a slide: {np.mean([len(b) for b in bags]):.0f}; share of tumour tiles: {np.mean(shares):.4f}")
    print(f"slide AUROC, linear model on the mean feature:            {roc_auc_score(labels, scores['mean']):.3f}")
    print(f"slide AUROC, linear model on the largest features:        {roc_auc_score(labels, scores['max']):.3f}")
    print(f"tile AUROC, linear tile model trained on the masks:       {np.mean(tile_auroc):.3f}")
    print(f"tile AUPRC, the same:                                     {np.mean(tile_precision):.3f}")
    best = roc_auc_score(labels, scores["tiles"])
    print(f"slide AUROC, mean of its {TOP_TILES} best tiles by that model:     {best:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
