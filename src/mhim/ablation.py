"""The three ablations of MHIM v1 on one's own cohort: module, strategy, teacher (ICCV 2023, tables 3 to 5).

Every variant is a change to the published method of the aggregator. Variants that come to the same configuration
are one run, and all start from the one plain baseline of their aggregator, seed and fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from mhim.config import merge, validate
from mhim.errors import ConfigError
from mhim.evaluation import Estimate, Summary, summarise
from mhim.presets import preset_names, preset_values
from mhim.training.crossval import RunPlan, check_recipe, plan_on, plan_run
from mhim.training.runs import RunConfig, open_run

Like = Literal["camelyon16", "tcga"]
BASELINE = "baseline"


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        label: as in the talk and the paper.
        variant: name of the variant, and of its folder.
        published: AUC of CAMELYON16 AB-MIL, CAMELYON16 TransMIL, TCGA-NSCLC AB-MIL, TCGA-NSCLC TransMIL.
    """

    label: str
    variant: str
    published: tuple[float, float, float, float]


_PLAIN = (94.00, 93.51, 93.17, 92.51)
_FULL = (96.14, 96.49, 94.97, 94.87)
TABLES: Mapping[str, tuple[Row, ...]] = MappingProxyType(
    {
        "module": (
            Row("Baseline", BASELINE, _PLAIN),
            Row("+MHIM", "self-teacher", (95.86, 96.06, 94.14, 93.75)),
            Row("+Siam.", "without-consistency", (95.82, 96.24, 94.55, 94.13)),
            Row("+Con.", "full", _FULL),
        ),
        "strategy": (
            Row("HAM", "ham", (95.68, 95.90, 93.83, 94.54)),
            Row("R-HAM", "r-ham", (96.14, 95.88, 94.79, 94.60)),
            Row("L-HAM", "l-ham", (95.81, 96.49, 94.33, 94.67)),
            Row("LR-HAM", "lr-ham", (95.92, 96.33, 94.97, 94.87)),
        ),
        "teacher": (
            Row("Baseline", BASELINE, _PLAIN),
            Row("Student copy", "student-copy", (95.84, 95.86, 93.68, 93.45)),
            Row("Init.", "init-only", (95.88, 96.12, 94.66, 94.15)),
            Row("Momentum", "momentum-only", (95.96, 96.11, 94.65, 94.45)),
            Row("Init.+Momentum", "full", _FULL),
        ),
    }
)
PUBLISHED_COLUMNS = ("C16 AB-MIL", "C16 TransMIL", "TCGA AB-MIL", "TCGA TransMIL")

# (random, low) ratios of R-HAM, L-HAM and LR-HAM, from the paper's table of ratios; others follow AB-MIL
_RATIOS: Mapping[tuple[str, Like], tuple[float, float]] = MappingProxyType(
    {
        ("abmil", "camelyon16"): (0.5, 0.2),
        ("transmil", "camelyon16"): (0.2, 0.8),
        ("abmil", "tcga"): (0.7, 0.2),
        ("transmil", "tcga"): (0.6, 0.2),
    }
)


@dataclass(frozen=True)
class Planned:
    """One run of the study: where it goes, and what it starts from."""

    model: str
    seed: int
    variant: str
    plan: RunPlan
    folder: Path

    @property
    def baseline(self) -> Path | None:
        """Folder of the plain run that it starts from."""
        return None if self.plan.baseline is None else self.folder.parent / BASELINE


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        models: aggregators by name.
        seeds: one run each.
        tables: keys of ``TABLES``.
        like: whose published settings the method takes.
        values: configuration keys that the user gave (data, training, any change). ``splits`` may hold
            ``{seed}``: each seed then has its own table.
    """

    models: tuple[str, ...]
    seeds: tuple[int, ...]
    tables: tuple[str, ...]
    like: Like
    values: Mapping[str, Any]

    @property
    def variants(self) -> tuple[str, ...]:
        """Variants of the chosen tables, once each, the baseline first."""
        named = [row.variant for table in self.tables for row in TABLES[table]]
        return tuple(dict.fromkeys([BASELINE, *named]))

    def configuration(self, model: str, seed: int, variant: str) -> RunConfig:
        """The run of a variant.

        Raises:
            ConfigError: unknown names, or options that do not fit this aggregator.
        """
        preset = f"iccv2023/{model}-{self.like}"
        published = preset_values([preset if preset in preset_names() else f"iccv2023/abmil-{self.like}"])
        whole = published["model"] if published["model"]["name"] == model else model
        splits = str(self.values["splits"]).replace("{seed}", str(seed))
        given = merge(self.values, {"seed": seed, "splits": splits})
        base = merge({"model": whole, "method": published["method"]}, given)
        config = validate(RunConfig, merge(base, {"model": {"name": model}}), f"ablate {model}")
        change = self._change(variant, model, config)
        if config.task.name != "classification":
            raise ConfigError(f"ablate: the talk's tables are of classification; leave task {config.task.name} out")
        return validate(RunConfig, merge(base, {"model": {"name": model}}, change), f"ablate {model} {variant}")

    def run_of(self, model: str, variant: str) -> str:
        """Name of the run that a variant is: "full" for the strategy that the aggregator's own settings use."""
        full, own = (self.configuration(model, self.seeds[0], name) for name in ("full", variant))
        return "full" if own == full else variant

    def _change(self, variant: str, model: str, config: RunConfig) -> dict[str, Any]:
        if variant == "full":
            return {}
        if variant not in {row.variant for row in TABLES["strategy"]}:
            return preset_values([f"ablation/{variant}"])
        mask = config.method.model_dump()["mask"]
        ratios = _RATIOS.get((model, self.like), _RATIOS["abmil", self.like])
        chances = {
            "mask_ratio_random": mask.get("mask_ratio_random") or ratios[0],
            "mask_ratio_low": mask.get("mask_ratio_low") or ratios[1],
        }
        dropped = {"ham": set(chances), "r-ham": {"mask_ratio_low"}, "l-ham": {"mask_ratio_random"}, "lr-ham": set()}
        mask |= chances | {"name": variant} | dict.fromkeys(dropped[variant], 0.0)
        return {"method": {"mask": mask}}


def plan_study(study: Study, out: Path) -> list[Planned]:
    """Every run of the study once, checked, each baseline before what starts from it.

    Raises:
        ConfigError, CohortError, FeatureError: one line; configurations are checked before any data.
    """
    configs = {
        (model, seed, name): study.configuration(model, seed, name)
        for model in study.models
        for seed in study.seeds
        for name in dict.fromkeys(study.run_of(model, variant) for variant in study.variants)
    }
    for config in configs.values():
        check_recipe(config)
    one_of_each = {config.splits: config for config in configs.values()}
    checked = {splits: plan_run(config) for splits, config in one_of_each.items()}
    return [
        Planned(model, seed, name, _plan_on(config, checked[config.splits]), out / model / f"seed_{seed}" / name)
        for (model, seed, name), config in configs.items()
    ]


def _plan_on(config: RunConfig, data: RunPlan) -> RunPlan:
    return plan_on(config, data.cohort, data.features, data.splits)


@dataclass(frozen=True)
class Cell:
    """One variant of one aggregator, measured here.

    Attributes:
        auroc: mean over the folds of all seeds, with its 95 % interval.
        seed_std: population standard deviation of the seeds' means; None for one seed.
        difference: to the plain baseline, on the same case-bootstrap draws; None for the baseline itself.
        seeds: number of runs.
        folds: number of folds over all runs.
    """

    auroc: Estimate
    seed_std: float | None
    difference: Estimate | None
    seeds: int
    folds: int


def measure(study: Study, planned: Sequence[Planned], resamples: int = 1000) -> dict[tuple[str, str], Cell]:
    """(aggregator, variant) -> what was measured; the runs must be complete.

    Raises:
        ArtefactError: a run that is not.
    """
    cells: dict[tuple[str, str], Cell] = {}
    for model in study.models:
        members = [each for each in planned if each.model == model]
        summaries = summarise([open_run(each.folder) for each in members], resamples)
        by_folder = {path: summary for summary in summaries for path in summary.runs}
        by_name = {each.variant: by_folder[each.folder] for each in members}
        for variant in study.variants:
            cells[model, variant] = _cell(by_name[study.run_of(model, variant)])
    return cells


def _cell(summary: Summary) -> Cell:
    return Cell(
        summary.estimates["auroc"],
        summary.run_std["auroc"],
        summary.difference.get("auroc"),
        len(summary.runs),
        summary.n_folds,
    )


def rows_of(study: Study) -> Iterator[tuple[str, Row]]:
    """(table, row) in the order of the tables."""
    for table in study.tables:
        for row in TABLES[table]:
            yield table, row
