"""What is learned: a task says how the cohort is read, what a bag is labelled with, and what is predicted and scored.

Classification is here; survival is in ``mhim.training.survival_task``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from mhim.cohort import Cohort, read_cohort
from mhim.config import ComponentConfig
from mhim.methods import CLASSIFICATION, Classification
from mhim.metrics import METRICS, Predictions, predict_classes, youden_threshold
from mhim.registry import Registry
from mhim.splits import Fold
from mhim.training.data import BagSet, BagStore
from mhim.training.monitor import Truth

Table = dict[str, Any]


class Task:
    """Base of every task, and classification of slides.

    Attributes:
        metric: headline metric; also the name of the validation score in history and ``fold.json``.
        select_by: names under which ``train.select_by`` may choose the epoch; the first is the default.
        metrics: what tables show, by name.
    """

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig
    metric: ClassVar[str] = "auroc"
    select_by: ClassVar[tuple[str, ...]] = ("auroc", "loss")
    metrics: ClassVar[Mapping[str, Callable[[Any], float | None]]] = METRICS
    unit: ClassVar[str] = "slide"

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config
        self.objective: Classification = CLASSIFICATION

    def read_cohort(self, path: Path) -> Cohort:
        """The cohort table."""
        return read_cohort(path)

    def outputs(self, cohort: Cohort) -> tuple[str, ...]:
        """Names of the model's outputs."""
        return cohort.classes

    @property
    def fewest_outputs(self) -> int:
        """How many outputs a model of this task surely has; for checks before data is read."""
        return 2

    def bags(self, store: BagStore, fold: Fold, part: str) -> BagSet:
        """The labelled bags of "train", "val" or "test"; no bag is read yet."""
        return store.part(fold.part(part))

    def truth(self, store: BagStore) -> Truth:
        """Instance truth of a bag by its name, for those who watch."""
        return store.truth

    def watched_label(self, label: Tensor) -> Tensor | None:
        """The class index of a bag, for those who watch; None for a task without classes."""
        return label

    def predictions(self, bags: BagSet, scores: NDArray[np.float64]) -> Any:
        """What was predicted, beside the truth; ``scores`` (M, C) come from the objective."""
        rows = bags.rows
        labels = np.array([bags.cohort.label_index(row) for row in rows], dtype=np.int64)
        return Predictions(np.array(bags.case_ids, dtype=np.str_), labels, scores.argmax(axis=1), scores)

    def score(self, predictions: Any) -> float | None:
        """The headline metric."""
        return self.metrics[self.metric](predictions)

    def threshold(self, val: Any) -> float | None:
        """What turns a score into a decision, chosen on the validation part."""
        return youden_threshold(val.y_true, val.probabilities[:, 1]) if val.n_classes == 2 else None

    def table(self, bags: BagSet, predictions: Any, outputs: Sequence[str], threshold: float | None) -> Table:
        """Columns of the predictions table after ``part`` and ``fold``."""
        said = predict_classes(predictions.probabilities, threshold)
        table: Table = {
            "slide_id": [row.slide_id for row in bags.rows],
            "case_id": [row.case_id for row in bags.rows],
            "y_true": [outputs[index] for index in predictions.y_true],
            "y_pred": [outputs[index] for index in said],
            "threshold": threshold,
        }
        return table | {f"prob_{name}": predictions.probabilities[:, index] for index, name in enumerate(outputs)}

    def from_table(self, table: pd.DataFrame, outputs: Sequence[str]) -> Any:
        """A predictions table as arrays."""
        return to_predictions(table, tuple(outputs))

    def tested(self, table: pd.DataFrame) -> set[tuple[str, ...]]:
        """What two runs must have in common to be compared: what was tested, and its truth."""
        return set(zip(table["slide_id"], table["case_id"], table["y_true"], strict=True))

    def counts(self, table: pd.DataFrame) -> dict[str, int]:
        """How much was tested; a table by case says how many slides a case has."""
        return {"n_slides": sum(table["n_slides"].tolist()) if "n_slides" in table else len(table)}

    def fold_facts(self, cohort: Cohort, fold: Fold) -> dict[str, Any]:
        """Further entries of ``fold.json``."""
        return {}

    def model_facts(self, cohort: Cohort, fold: Fold) -> dict[str, str]:
        """Further texts kept with the model file."""
        return {}

    def chosen_by(self, select_by: str) -> dict[str, str]:
        """What chose what, for tables and the report."""
        return {
            "epoch": f"validation {select_by}",
            "threshold": "validation Youden index",
            "test part": "scored once, after training",
        }


def to_predictions(table: pd.DataFrame, classes: tuple[str, ...]) -> Predictions:
    """A predictions table of a classification as arrays."""
    return Predictions(
        case_id=table["case_id"].to_numpy(dtype=np.str_),
        y_true=np.array([classes.index(name) for name in table["y_true"]], dtype=np.int64),
        y_pred=np.array([classes.index(name) for name in table["y_pred"]], dtype=np.int64),
        probabilities=table[[f"prob_{name}" for name in classes]].to_numpy(dtype=np.float64),
    )


tasks: Registry[Task] = Registry("task")
tasks.register("classification")(Task)
CLASSIFY = tasks.build(tasks.parse("classification"))
