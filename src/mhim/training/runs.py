"""The run folder: one cross-validated training run, as ``mhim train`` writes it.

::

    RUN/config.yaml            resolved configuration
    RUN/run.json               what the run was trained on: identity, classes, width, fingerprints
    RUN/fold_0/model.safetensors, history.csv, predictions.csv, fold.json (written last)
    RUN/fold_0/teacher_<moment>.safetensors   MHIM's teacher at the start, middle, best, last (mhim mining)
    RUN/predictions.csv        test predictions of all folds
    RUN/metrics.json           metrics with intervals
    RUN/baseline/              the plain baseline of a two-stage method, itself a run folder
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from mhim.artefacts import read_json, write_text
from mhim.checkpoint import load_model, read_metadata
from mhim.config import ComponentConfig, Settings, fingerprint, read_yaml, validate
from mhim.errors import ArtefactError, CheckpointError, ConfigError
from mhim.methods import methods
from mhim.models import MILModel, models
from mhim.protocols import HONEST
from mhim.protocols import protocol as find_protocol
from mhim.training.fit import TrainConfig
from mhim.training.survival_task import Survival
from mhim.training.tasks import Task, tasks, to_predictions

__all__ = ["Run", "RunConfig", "Survival", "is_whole", "open_run", "read_predictions", "to_predictions", "write_table"]

ModelConfig = Annotated[SerializeAsAny[ComponentConfig], BeforeValidator(models.parse)]
TaskConfig = Annotated[SerializeAsAny[ComponentConfig], BeforeValidator(tasks.parse)]
MethodConfig = Annotated[SerializeAsAny[ComponentConfig], BeforeValidator(methods.parse)]


class RunConfig(Settings):
    """Everything that a run is made from."""

    cohort: Path = Field(description="cohort table")
    features: Path = Field(description="folder of bag files")
    splits: Path = Field(description="splits table")
    seed: int = Field(0, ge=0, description="seed of initialisation, bag order, dropout and masks")
    task: TaskConfig = Field(
        default_factory=lambda: tasks.parse("classification"), description="classification, or survival"
    )
    model: ModelConfig = Field(default_factory=lambda: models.parse("abmil"), description="aggregator")
    method: MethodConfig = Field(default_factory=lambda: methods.parse("mhim-v1"), description="training method")
    train: TrainConfig = Field(default_factory=lambda: TrainConfig.model_validate({}), description="optimisation")
    allow_missing: bool = Field(False, description="go on without slides that have no bag")
    protocol: str = Field(HONEST, description="honest, or a published protocol by name; they never share a table")

    @model_validator(mode="after")
    def _protocol_fits(self) -> RunConfig:
        chosen = find_protocol(self.protocol)
        if chosen.first_epoch(self.train.epochs) > self.train.choose_from:
            first = chosen.first_epoch(self.train.epochs)
            raise ConfigError(
                f"protocol {chosen.name} ignores the first {first} of {self.train.epochs} epochs; "
                f"give --set train.choose_from={first}"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _default_selection(cls, values: Any) -> Any:
        """A task whose epochs cannot be chosen by AUROC chooses by its own score."""
        if not isinstance(values, dict) or "task" not in values:
            return values
        own, train = tasks[tasks.parse(values["task"]).name].select_by[0], values.get("train") or {}
        if not isinstance(train, dict) or "select_by" in train or own == TrainConfig.model_fields["select_by"].default:
            return values
        return values | {"train": train | {"select_by": own}}

    @model_validator(mode="after")
    def _selection_fits(self) -> RunConfig:
        allowed = tasks[self.task.name].select_by
        if self.train.select_by not in allowed:
            raise ConfigError(
                f"train.select_by is {self.train.select_by}, which {self.task.name} does not have; "
                f"give --set train.select_by={allowed[0]} (or {', '.join(allowed[1:])})"
            )
        return self

    @property
    def title(self) -> str:
        """Short name in tables: the aggregator, and the method when it is not plain."""
        return self.model.name if self.method.name == "supervised" else f"{self.method.name} ({self.model.name})"

    def identity(self, data_fingerprint: str, splits_fingerprint: str) -> str:
        """What makes two runs the same: model, method, optimisation, seed, data and folds.

        Paths, device, threads and what is watched are not part of it.
        """
        return fingerprint([*self._recipe(), self.seed, data_fingerprint, splits_fingerprint])

    @property
    def recipe(self) -> str:
        """What the seeds of one experiment have in common: model, method and optimisation."""
        return fingerprint(self._recipe())

    def _recipe(self) -> list[dict[str, Any]]:
        train = self.train.model_dump(mode="json", exclude=set(ASIDE))
        recipe = [self.model.model_dump(mode="json"), self.method.model_dump(mode="json"), train]
        if self.protocol != HONEST:
            recipe.append({"protocol": self.protocol})
        return recipe if self.task.name == "classification" else [*recipe, self.task.model_dump(mode="json")]


FLOATS, INTEGERS = ("threshold", "time", "risk"), ("event", "time_bin", "n_slides")
FLOAT_PREFIXES = ("prob_", "hazard_", "logit_hazard_")
ASIDE = ("device", "threads", "watch", "keep_teachers", "map_bags", "cache_bytes", "activation_mib")
"""Options of the optimisation that change no result."""
FOLD_FILES = ("model.safetensors", "history.csv", "predictions.csv", "fold.json")


def is_whole(fold_folder: Path) -> bool:
    """Whether a fold has all its files and a readable ``fold.json``, which is written last."""
    if not all((fold_folder / name).is_file() for name in FOLD_FILES):
        return False
    try:
        read_json(fold_folder / "fold.json")
    except ArtefactError:
        return False
    return True


def require_fold_file(path: Path, fold: int, identity: str) -> None:
    """Refuse a model file that another fold or another run wrote, whatever the folder around it says.

    Raises:
        CheckpointError: names the file and what it says of itself.
    """
    said = read_metadata(path)
    if (said.get("fold"), said.get("identity")) != (str(fold), identity):
        raise CheckpointError(
            f"{path}: written by fold {said.get('fold')} of run {said.get('identity')}, not by fold {fold} of "
            f"{identity}; a teacher from it may have seen the test slides: train the baseline again"
        )


@dataclass(frozen=True)
class Run:
    """A run folder opened for reading.

    Attributes:
        path: the folder.
        config: resolved configuration.
        info: the content of ``run.json``.
    """

    path: Path
    config: RunConfig
    info: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the model's outputs in index order: classes, or hazards."""
        return tuple(self.info["classes"])

    @property
    def task(self) -> Task:
        """What the run learned."""
        return tasks.build(self.config.task)

    @property
    def unit(self) -> str:
        """What a row of the predictions is: a slide, or a case."""
        return self.task.unit

    def require_classes(self, what: str) -> None:
        """Refuse a run that has no classes.

        Raises:
            ConfigError: names the run and ``what`` needs classes.
        """
        if self.config.task.name != "classification":
            raise ConfigError(f"{self.path}: a {self.config.task.name} run; {what} needs a run with classes")

    @property
    def folds(self) -> tuple[int, ...]:
        """Indices of the folds that are complete."""
        return tuple(i for i in range(self.info["n_folds"]) if is_whole(self.fold_path(i)))

    def fold_path(self, fold: int) -> Path:
        """Folder of one fold."""
        return self.path / f"fold_{fold}"

    def model(self, fold: int, device: str = "cpu") -> MILModel:
        """The deployed aggregator of a fold, in evaluation mode."""
        return load_model(self.fold_path(fold) / "model.safetensors", device)

    def history(self, fold: int) -> pd.DataFrame:
        """One row per epoch."""
        return pd.read_csv(self.fold_path(fold) / "history.csv")

    def predictions(self, fold: int) -> pd.DataFrame:
        """Validation and test predictions of a fold; ``part`` says which."""
        return read_predictions(self.fold_path(fold) / "predictions.csv")

    def test_predictions(self) -> pd.DataFrame:
        """Test predictions of all folds, with the column ``fold``."""
        return read_predictions(self.path / "predictions.csv")

    def fold_info(self, fold: int) -> dict[str, Any]:
        """Best epoch, threshold and counts of a fold."""
        return read_json(self.fold_path(fold) / "fold.json")

    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``."""
        return read_json(self.path / "metrics.json")


def open_run(path: Path) -> Run:
    """The run in a folder.

    Raises:
        ArtefactError: not a run folder, or no fold is complete.
    """
    if not (path / "run.json").is_file():
        raise ArtefactError(f"{path}: not a run folder (no run.json); make one with 'mhim train'")
    run = Run(
        path,
        validate(RunConfig, read_yaml(path / "config.yaml"), str(path / "config.yaml")),
        read_json(path / "run.json"),
    )
    if len(run.folds) < run.info["n_folds"]:
        done, total = len(run.folds), run.info["n_folds"]
        raise ArtefactError(f"{path}: only {done} of {total} folds are complete; run the same 'mhim train' again")
    return run


def read_predictions(path: Path) -> pd.DataFrame:
    """A predictions table; ids stay text.

    Raises:
        ArtefactError: the file is missing.
    """
    if not path.is_file():
        raise ArtefactError(f"{path}: no such file; run the same 'mhim train' again")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)  # a class or a case may be called NA
    table["fold"] = table["fold"].map(int)
    for column in table.columns:
        if column in FLOATS or column.startswith(FLOAT_PREFIXES):
            table[column] = [float(text or "nan") for text in table[column]]  # exact, whatever pandas' own parser does
        elif column in INTEGERS:
            table[column] = table[column].map(int)
    return table


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV table atomically, floats in full precision."""
    buffer = io.StringIO()
    table.to_csv(buffer, index=False)
    write_text(path, buffer.getvalue())
