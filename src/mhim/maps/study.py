"""What maps are drawn from: runs, their honest fold for each slide, bags, slides and annotations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd

from mhim.artefacts import quick_digest
from mhim.bag import Bag, load_bag
from mhim.cohort import SlideRow, read_cohort
from mhim.config import fingerprint
from mhim.errors import CohortError, ConfigError, FeatureError
from mhim.maps.config import MapConfig
from mhim.maps.values import TileValues, tile_values
from mhim.metrics import predict_classes
from mhim.models.contract import MILModel
from mhim.training.runs import Run

SAME_PROBABILITY = 2e-3
REMEMBERED_TILES = 1_000_000
"""Tiles whose values a run keeps in memory, so that a slide that is drawn, then scored, is computed once."""


@dataclass(frozen=True)
class Prediction:
    """What a run said of a slide when it was in a test part.

    Attributes:
        slide_id, case_id: the slide and its owner.
        fold: the fold that tested it; only this fold's model never saw it.
        y_true, y_pred: class names; ``y_true`` is empty for a slide that the run does not know.
        threshold: on the positive class, or None.
        probabilities: one for each class.
    """

    slide_id: str
    case_id: str
    fold: int
    y_true: str
    y_pred: str
    threshold: float | None
    probabilities: tuple[float, ...]

    @property
    def is_wrong(self) -> bool:
        """Whether the prediction is not the true class."""
        return not self.is_new and self.y_true != self.y_pred

    @property
    def is_new(self) -> bool:
        """Whether the run does not know the slide."""
        return not self.y_true

    @property
    def certainty(self) -> float:
        """How far the slide is from being decided otherwise, 0 at the threshold, 1 at a sure class."""
        if len(self.probabilities) != 2 or self.threshold is None:
            first, second = sorted(self.probabilities)[:-3:-1]
            return first - second
        p, cut = self.probabilities[1], self.threshold
        room = 1 - cut if p >= cut else cut
        return abs(p - cut) / room if room > 0 else 1.0


class RunMaps:
    """One run as a source of maps.

    Args:
        run: a complete run.
        slug: its name in file names, unique among the runs drawn together.
        features: folder of bag files; None takes the run's.
        new_by: fold whose model draws the slides that the run does not know; None draws the tested slides.

    Raises:
        CohortError: the run has no such fold.
        ConfigError: a run without classes.
    """

    def __init__(self, run: Run, slug: str, features: Path | None = None, new_by: int | None = None) -> None:
        run.require_classes("drawing maps")
        if new_by is not None and new_by not in run.folds:
            raise CohortError(f"{run.path}: has no fold {new_by}; it has {', '.join(map(str, run.folds))}")
        self.run = run
        self.slug = slug
        self.features = features or run.config.features
        self.new_by = new_by
        self._models: dict[int, MILModel] = {}
        self._new: dict[str, Prediction] = {}
        self._said: dict[str, tuple[bytes, TileValues]] = {}

    @cached_property
    def predictions(self) -> dict[str, Prediction]:
        """Test predictions by slide; a slide that several folds tested counts for the first of them."""
        return {row.slide_id: row for row in reversed(read_test_predictions(self.run))}

    @cached_property
    def slides(self) -> tuple[str, ...]:
        """The slides that can be drawn: the tested ones, or those that the run does not know."""
        if self.new_by is None:
            return tuple(self.predictions)
        return tuple(sorted(path.stem for path in self.features.glob("*.h5") if path.stem not in self.predictions))

    def prediction(self, slide_id: str) -> Prediction:
        """What the run said of a slide, or what the chosen fold says of a new one."""
        if self.new_by is None:
            return self.predictions[slide_id]
        if slide_id not in self._new:
            self._new[slide_id] = self._predict(slide_id, self.new_by)
        return self._new[slide_id]

    def _predict(self, slide_id: str, fold: int) -> Prediction:
        bag = self.bag(slide_id)
        encoder, wanted = bag.attributes.get("encoder"), self.run.info["encoder"]
        if encoder != wanted:
            raise FeatureError(f"{self.bag_path(slide_id)}: encoded with {encoder}, but the run with {wanted}")
        said = self._values(bag, slide_id, fold).slide_probabilities
        threshold = self.run.fold_info(fold)["threshold"]
        index = int(predict_classes(said[None], threshold)[0])
        name = self.run.classes[index]
        return Prediction(slide_id, slide_id, fold, "", name, threshold, tuple(float(value) for value in said))

    def bag_path(self, slide_id: str) -> Path:
        """The bag file of a slide."""
        return self.features / f"{slide_id}.h5"

    def bag(self, slide_id: str) -> Bag:
        """The bag of a slide."""
        return load_bag(self.bag_path(slide_id))

    def model(self, fold: int) -> MILModel:
        """The model of a fold, read once."""
        if fold not in self._models:
            self._models[fold] = self.run.model(fold)
        return self._models[fold]

    def values(self, bag: Bag, slide_id: str) -> TileValues:
        """The maps of a slide by the model of the fold that tested it, or that was chosen for new slides.

        Raises:
            FeatureError: the model says something else of this bag than the run recorded.
        """
        recorded = self.prediction(slide_id)
        values = self._values(bag, slide_id, recorded.fold)
        apart = float(np.abs(values.slide_probabilities - np.array(recorded.probabilities)).max())
        if apart > SAME_PROBABILITY:
            raise FeatureError(
                f"{self.bag_path(slide_id)}: fold {recorded.fold} of {self.run.path} gives a probability that is "
                f"{apart:.3f} off the recorded one; bag or weights have changed, give the run's own --features"
            )
        return values

    def _values(self, bag: Bag, slide_id: str, fold: int) -> TileValues:
        """The maps of a slide's very features by a fold; the last slides' are remembered."""
        key = sha256(np.ascontiguousarray(bag.features).view(np.uint8).data).digest() + bytes([fold])
        known = self._said.pop(slide_id, None)
        values = known[1] if known is not None and known[0] == key else tile_values(self.model(fold), bag)
        self._said[slide_id] = key, values
        while len(self._said) > 1 and sum(each.n_tiles for _, each in self._said.values()) > REMEMBERED_TILES:
            del self._said[next(iter(self._said))]
        return values

    def identity(self, slide_id: str) -> list[str]:
        """What the maps of a slide are made from, on this run's side."""
        fold = self.prediction(slide_id).fold if self.new_by is None else self.new_by
        weights = quick_digest(self.run.fold_path(fold) / "model.safetensors")
        return [self.slug, self.run.info["identity"], weights, _digest(self.bag_path(slide_id))]


@dataclass(frozen=True)
class Study:
    """Runs that tested the same slides, and where those slides are.

    Attributes:
        runs: the sources, in the order given.
        rows: rows of the cohort table by slide; empty when there is no table.
        slides: slides that every run tested, in the order of the first run.
    """

    runs: tuple[RunMaps, ...]
    rows: dict[str, SlideRow]
    slides: tuple[str, ...]

    @classmethod
    def of(cls, runs: Sequence[Run], config: MapConfig) -> Study:
        """The study of some runs.

        Raises:
            CohortError: no slide was tested by all of them, or their classes differ.
            ConfigError: no run was given.
        """
        if not runs:
            raise ConfigError("give at least one run folder")
        for run in runs[1:]:
            if run.classes != runs[0].classes:
                raise CohortError(f"{run.path}: its classes are not those of {runs[0].path}; map them separately")
        named = zip(runs, unique_slugs(runs), strict=True)
        sources = tuple(RunMaps(run, slug, config.features, config.fold) for run, slug in named)
        shared = [s for s in sources[0].slides if all(s in other.slides for other in sources[1:])]
        if not shared and config.fold is not None:
            raise CohortError(f"{sources[0].features}: no bag here of a slide that {runs[0].path} does not know")
        if not shared:
            raise CohortError(f"{runs[1].path}: tested no slide that {runs[0].path} tested; map them separately")
        return cls(sources, _rows(runs[0], config), tuple(sorted(shared)))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.runs[0].run.classes

    def fingerprint(self, slide_id: str) -> str:
        """What the pictures of a slide are made from: weights, bag, slide file, annotation."""
        row = self.rows.get(slide_id)
        files = [row.path, row.annotation] if row is not None else []
        return fingerprint(
            [[run.identity(slide_id) for run in self.runs], [_digest(path) for path in files if path is not None]]
        )

    def chosen(self, config: MapConfig, slides: Sequence[str] | None) -> list[str]:
        """The slides to draw: the named ones, or a telling selection by the last run.

        Raises:
            CohortError: a named slide was not tested.
        """
        if slides is not None:
            for slide_id in slides:
                if slide_id not in self.slides:
                    raise CohortError(
                        f"{self.runs[0].run.path}: slide {slide_id} is in no test part; a slide that the run does not "
                        f"know is drawn with --fold (slides here: {len(self.slides)}, first: {self.slides[0]})"
                    )
            return list(dict.fromkeys(slides))
        if config.max_slides is None or config.fold is not None:
            return list(self.slides)
        predictions = [self.runs[-1].prediction(slide_id) for slide_id in self.slides]
        chosen = {slide_id for group in telling(predictions, config.max_slides).values() for slide_id in group}
        return [slide_id for slide_id in self.slides if slide_id in chosen]


def read_test_predictions(run: Run) -> list[Prediction]:
    """The test predictions of a run, in table order."""
    table = run.test_predictions()
    return [
        Prediction(
            slide_id=str(record["slide_id"]),
            case_id=str(record["case_id"]),
            fold=int(record["fold"]),
            y_true=str(record["y_true"]),
            y_pred=str(record["y_pred"]),
            threshold=None if pd.isna(record["threshold"]) else float(record["threshold"]),
            probabilities=tuple(float(record[f"prob_{name}"]) for name in run.classes),
        )
        for record in table.to_dict("records")
    ]


def telling(predictions: Sequence[Prediction], limit: int) -> dict[str, list[str]]:
    """At most ``limit`` slides worth a look: the most wrong, the least certain, the most certain ones.

    Wrong slides come first, the surest errors before the others; certain ones are taken in turn from
    each class. A slide is in one group only.

    Args:
        predictions: one a slide.
        limit: how many slides in all, shared evenly; room that a group leaves goes to the next.
    """
    surest = sorted(predictions, key=lambda p: (-p.certainty, p.slide_id))
    wrong = [p.slide_id for p in surest if p.is_wrong]
    right = [p for p in surest if not p.is_wrong]
    groups: dict[str, list[str]] = {"wrong": wrong[: (limit + 2) // 3]}
    left = limit - len(groups["wrong"])
    groups["least certain"] = [p.slide_id for p in reversed(right)][: left // 2]
    taken = set(groups["least certain"])
    by_class: dict[str, list[str]] = {}
    for p in right:
        if p.slide_id not in taken:
            by_class.setdefault(p.y_true, []).append(p.slide_id)
    turns = [slides[turn] for turn in range(len(right)) for slides in by_class.values() if turn < len(slides)]
    groups["most certain"] = turns[: left - len(taken)]
    return groups


def unique_slugs(runs: Sequence[Run]) -> list[str]:
    """A file name part for each run: its title; seed and number are added where titles meet."""
    titles = [slug(run.config.title) for run in runs]
    if len(set(titles)) < len(titles):
        titles = [f"{title}-seed{run.config.seed}" for title, run in zip(titles, runs, strict=True)]
    return [title if titles.count(title) == 1 else f"{title}-{number}" for number, title in enumerate(titles, start=1)]


def slug(text: str) -> str:
    """Lower-case letters, digits and single hyphens.

    >>> slug("mhim-v1 (abmil)")
    'mhim-v1-abmil'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _rows(run: Run, config: MapConfig) -> dict[str, SlideRow]:
    """Rows of the given cohort table, else of the run's own where it still is."""
    path = config.cohort or run.config.cohort
    if config.cohort is None and not path.is_file():
        return {}
    return {row.slide_id: row for row in read_cohort(path)}


def _digest(path: Path) -> str:
    return quick_digest(path) if path.is_file() else "absent"
