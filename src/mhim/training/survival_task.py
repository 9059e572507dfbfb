"""Survival as a task: a case is one bag, the model's outputs are discrete hazards, the score is the C-index.

Bins of time are made from the training part of a fold alone; the other parts' times fall into them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from mhim.cohort import Cohort, SurvivalCohort, read_survival_cohort
from mhim.config import ComponentConfig
from mhim.errors import CohortError
from mhim.methods import DiscreteHazards
from mhim.splits import Fold
from mhim.survival import SURVIVAL_METRICS, SurvivalPredictions, Times, assign_bins, time_bins
from mhim.training.data import BagSet, BagStore, CaseBags
from mhim.training.monitor import Truth
from mhim.training.tasks import Table, Task, tasks

COUNTED = {"n_slides": "n_slides", "n_events": "event"}


class SurvivalConfig(ComponentConfig):
    """Options of survival; the defaults are the published ones (section 6.4)."""

    bins: int = Field(4, ge=2, description="bins of time: quantiles of the event times of the training part")
    event_share: float = Field(
        0.0, ge=0, le=1, description="alpha of the likelihood: 0 as it is, towards 1 of the events alone"
    )


@tasks.register("survival")
class Survival(Task):
    """See the module."""

    Config = SurvivalConfig
    config: SurvivalConfig
    metric = "c_index"
    select_by = ("c-index", "loss")
    metrics = SURVIVAL_METRICS
    unit = "case"

    def __init__(self, config: SurvivalConfig) -> None:
        super().__init__(config)
        self.objective = DiscreteHazards(config.event_share)

    def read_cohort(self, path: Path) -> Cohort:
        """The cohort table with time and event."""
        return read_survival_cohort(path)

    def outputs(self, cohort: Cohort) -> tuple[str, ...]:
        """One hazard a bin."""
        return tuple(f"hazard_{index}" for index in range(self.config.bins))

    @property
    def fewest_outputs(self) -> int:
        """As many as there are bins."""
        return self.config.bins

    def edges(self, cohort: Cohort, fold: Fold) -> Times:
        """(bins + 1,) edges of a fold, from its training part.

        Raises:
            CohortError: too few events there; names the fold.
        """
        times, events = follow_up(cohort, fold.train)
        try:
            return time_bins(times, events, self.config.bins)
        except CohortError as error:
            raise CohortError(f"{cohort.source}: training part of fold {fold.index}: {error} (task.bins)") from None

    def bags(self, store: BagStore, fold: Fold, part: str) -> BagSet:
        """The cases of a part."""
        rows = tuple(store.cohort.of_cases(fold.part(part)))
        cases = tuple(dict.fromkeys(row.case_id for row in rows))
        times, events = follow_up(store.cohort, cases)
        bins = assign_bins(times, self.edges(store.cohort, fold))
        return CaseBags(store, rows, cases, torch.from_numpy(np.stack([bins, events.astype(np.int64)], axis=1)))

    def truth(self, store: BagStore) -> Truth:
        """Instance truth of all slides of a case; None where one has none."""

        def of_case(case: str) -> Tensor | None:
            shares = [store.truth(row.slide_id) for row in store.cohort.of_cases([case])]
            known = [share for share in shares if share is not None]
            return torch.cat(known) if len(known) == len(shares) else None

        return of_case

    def watched_label(self, label: Tensor) -> Tensor | None:
        """None: a bin of time is no class of an instance."""
        return None

    def predictions(self, bags: BagSet, scores: NDArray[np.float64]) -> Any:
        """Hazards, times and events."""
        times, events = follow_up(bags.cohort, bags.case_ids)
        return SurvivalPredictions(np.array(bags.case_ids, dtype=np.str_), times, events, scores)

    def threshold(self, val: Any) -> float | None:
        """Median risk of the validation part: above it, a case belongs to the group of high risk."""
        return float(np.median(val.risks))

    def table(self, bags: BagSet, predictions: Any, outputs: Sequence[str], threshold: float | None) -> Table:
        """One row a case."""
        risks = predictions.risks
        assert threshold is not None
        assert isinstance(bags, CaseBags)
        table: Table = {
            "case_id": list(bags.case_ids),
            "n_slides": [len(bags.rows_of(case)) for case in bags.cases],
            "time": predictions.times,
            "event": predictions.events.astype(np.int64),
            "time_bin": bags.targets[:, 0].numpy(),
            "risk": risks,
            "threshold": threshold,
            "risk_group": np.where(risks > threshold, "high", "low"),
        }
        hazards = {name: predictions.hazards[:, index] for index, name in enumerate(outputs)}
        return table | hazards | {f"logit_{name}": predictions.logits[:, index] for index, name in enumerate(outputs)}

    def from_table(self, table: pd.DataFrame, outputs: Sequence[str]) -> Any:
        """A predictions table as arrays."""
        return SurvivalPredictions(
            case_id=table["case_id"].to_numpy(dtype=np.str_),
            times=table["time"].to_numpy(dtype=np.float64),
            events=table["event"].to_numpy() == 1,
            logits=table[[f"logit_{name}" for name in outputs]].to_numpy(dtype=np.float64),
        )

    def tested(self, table: pd.DataFrame) -> set[tuple[str, ...]]:
        """Cases with their follow-up."""
        return {(str(c), repr(float(t)), str(e)) for c, t, e in table[["case_id", "time", "event"]].to_numpy()}

    def counts(self, table: pd.DataFrame) -> dict[str, int]:
        """Slides and events."""
        return {name: int(table[column].to_numpy().sum()) for name, column in COUNTED.items()}

    def fold_facts(self, cohort: Cohort, fold: Fold) -> dict[str, Any]:
        """Edges of the bins, cases and events by part."""
        events = {part: int(follow_up(cohort, fold.part(part))[1].sum()) for part in ("train", "val", "test")}
        cases = {part: len(fold.part(part)) for part in ("train", "val", "test")}
        return {"time_edges": self.edges(cohort, fold).tolist(), "n_cases": cases, "n_events": events}

    def model_facts(self, cohort: Cohort, fold: Fold) -> dict[str, str]:
        """That the outputs are hazards, and of which times."""
        return {"task": "survival", "time_edges": json.dumps(self.edges(cohort, fold).tolist())}

    def chosen_by(self, select_by: str) -> dict[str, str]:
        """What chose what, for tables and the report."""
        return super().chosen_by(select_by) | {
            "threshold": "validation median risk",
            "time bins": "event times of the training part",
        }


def follow_up(cohort: Cohort, cases: Sequence[str]) -> tuple[Times, NDArray[np.bool_]]:
    """(M,) times and (M,) events of some cases of a survival cohort, in their order."""
    assert isinstance(cohort, SurvivalCohort)
    times, events = cohort.case_times(), cohort.case_labels()
    return np.array([times[case] for case in cases]), np.array([events[case] == 1 for case in cases], dtype=np.bool_)
