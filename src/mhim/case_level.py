"""Runs scored by case: the probabilities of a case's slides are combined, and everything else is as for slides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from mhim.errors import ConfigError
from mhim.metrics import predict_classes
from mhim.protocols import protocol
from mhim.training.runs import Run
from mhim.training.tasks import to_predictions

Combine = Literal["mean", "max"]
WORDS: dict[Combine, str] = {
    "mean": "mean of the slides' probabilities",
    "max": "the slide with the highest probability of class 1",
}


@dataclass(frozen=True)
class CaseRun(Run):
    """A run of slides whose tables have one row a case; ``slide_id`` is the case, ``n_slides`` how many it has.

    A case is of the highest class among its slides. Its threshold is chosen anew, on the fold's validation cases.

    Attributes:
        combine: how the slides' probabilities become the case's.
    """

    combine: Combine

    @property
    def unit(self) -> str:
        """A case."""
        return "case"

    def predictions(self, fold: int) -> pd.DataFrame:
        """Validation and test cases of a fold."""
        table = super().predictions(fold)
        parts = {name: self._combined(part) for name, part in table.groupby("part", sort=False)}
        chosen = parts[protocol(self.config.protocol).threshold_by]
        threshold = self.task.threshold(to_predictions(chosen, self.classes))
        return pd.concat([self._decided(part, threshold) for part in parts.values()], ignore_index=True)

    def test_predictions(self) -> pd.DataFrame:
        """Test cases of all folds."""
        tables = [self.predictions(fold) for fold in self.folds]
        tested = [table.loc[table["part"] == "test"].drop(columns="part") for table in tables]
        return pd.concat(tested, ignore_index=True)

    def _combined(self, table: pd.DataFrame) -> pd.DataFrame:
        """One row a case, in order of first appearance; of one part of one fold."""
        columns = [f"prob_{name}" for name in self.classes]
        of_case = table.groupby("case_id", sort=False)
        if self.combine == "mean":
            rows = of_case.first().assign(**{name: of_case[name].mean() for name in columns})
        else:
            rows = table.loc[of_case[columns[1]].idxmax()].set_index("case_id")
        highest = of_case["y_true"].agg(lambda labels: max(labels, key=self.classes.index))
        rows = rows.assign(y_true=highest, n_slides=of_case.size())
        return rows.assign(slide_id=rows.index).reset_index()

    def _decided(self, table: pd.DataFrame, threshold: float | None) -> pd.DataFrame:
        said = predict_classes(to_predictions(table, self.classes).probabilities, threshold)
        return table.assign(y_pred=[self.classes[index] for index in said], threshold=threshold)


def by_case(run: Run, combine: Combine) -> CaseRun:
    """The same run, scored by case.

    Raises:
        ConfigError: a run without classes, which is by case already; ``max`` for more than two classes.
    """
    run.require_classes("--by-case")
    if combine == "max" and len(run.classes) > 2:
        raise ConfigError(f"{run.path}: {len(run.classes)} classes; --by-case max is for two, take mean")
    return CaseRun(run.path, run.config, run.info, combine)


def sentence(combine: Combine) -> str:
    """What a reader of the table has to know."""
    return (
        f"by case: {WORDS[combine]}; a case is of the highest class among its slides; thresholds were chosen on "
        f"validation cases"
    )
