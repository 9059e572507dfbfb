"""Running a paper's cross-validation repetition by repetition, going on after an interruption, and its table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from mhim.artefacts import read_json, write_json, write_text
from mhim.config import fingerprint
from mhim.errors import ArtefactError
from mhim.papers.catalogue import Paper, paper
from mhim.papers.mil_sets import MILSet
from mhim.papers.repetition import Recipe, Repetition, train_repetition
from mhim.pool import end_with_parent


@dataclass(frozen=True)
class Task:
    """One repetition of the cross-validation of one set with one network, and the file of its result."""

    paper: str
    data: MILSet
    network: str
    repeat: int
    recipe: Recipe
    seed: int
    file: Path

    @property
    def identity(self) -> str:
        """What makes two repetitions the same."""
        digest = hashlib.sha256(self.data.features.tobytes())
        for array in (self.data.count, self.data.label, self.data.test_fold[self.repeat]):
            digest.update(array.tobytes())
        parts = [digest.hexdigest(), self.paper, self.network, self.repeat, asdict(self.recipe), self.seed]
        return fingerprint(parts)

    def is_done(self) -> bool:
        """Whether the result is there.

        Raises:
            ArtefactError: a result of something else is there.
        """
        if not self.file.is_file():
            return False
        if read_json(self.file).get("identity") != self.identity:
            raise ArtefactError(f"{self.file}: holds a result of another recipe, seed or data; give another --out")
        return True


def plan_tasks(
    chosen: Paper, data: MILSet, networks: Sequence[str], repeats: int, recipe: Recipe, seed: int, out: Path
) -> list[Task]:
    """The first ``repeats`` repetitions of the set's folds, for each network."""
    folder = out / chosen.name / data.name
    return [
        Task(chosen.name, data, network, repeat, recipe, seed, folder / network / f"repeat_{repeat}.json")
        for network in networks
        for repeat in range(min(repeats, len(data.test_fold)))
    ]


def run_tasks(tasks: Sequence[Task], workers: int, on_task: Callable[[], None]) -> None:
    """Run what is not done; every result is written as soon as it is there."""
    todo = [task for task in tasks if not task.is_done()]
    if workers > 1 and len(todo) > 1:
        with ProcessPoolExecutor(min(workers, len(todo)), get_context("spawn"), _prepare) as pool:
            jobs = {pool.submit(run_task, task) for task in todo}
            for job in as_completed(jobs):
                job.result()
                on_task()
        return
    for task in todo:
        run_task(task)
        on_task()


def _prepare() -> None:
    end_with_parent()


def run_task(task: Task) -> None:
    """One repetition, on one thread (so that the machine does not change it), and its file."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    build = paper(task.paper).networks[task.network]
    try:
        result = train_repetition(task.data, task.repeat, build, task.recipe, task.seed)
    finally:
        torch.set_num_threads(before)
    arrays = {name: value.tolist() for name, value in vars(result).items()}
    write_json(task.file, {"identity": task.identity, "recipe": asdict(task.recipe), "result": arrays})


@dataclass(frozen=True)
class Row:
    """One set and network.

    Attributes:
        name, network: which.
        repeats: repetitions that were run.
        accuracy: mean over all folds of all repetitions, after the last epoch at threshold 0.5: nothing is chosen on
            the test fold.
        error: mean over repetitions of the standard error over their folds, std / sqrt(K).
        repeat_std: standard deviation (ddof 1) of the repetitions' means; None for one.
        epoch_by_test: mean accuracy when the test fold chooses the epoch; shows what that is worth, is no result.
        both_by_test: the same, when it chooses epoch and threshold.
        auroc: mean over folds that have both classes.
        published: accuracy and printed error, or None for a set that the paper does not have.
        selects_on_test: whether the published value was made like ``both_by_test``, and is compared with that.
    """

    name: str
    network: str
    repeats: int
    accuracy: float
    error: float
    repeat_std: float | None
    epoch_by_test: float
    both_by_test: float
    auroc: float | None
    published: tuple[float, float] | None
    selects_on_test: bool

    @property
    def verdict(self) -> str:
        """Whether the published value comes out within its printed error, and by how much not."""
        if self.published is None:
            return "not in the paper"
        # of the three digits that papers print: 0.711 - 0.729 is within 0.018
        gap = round((self.both_by_test if self.selects_on_test else self.accuracy) - self.published[0], 3)
        return f"{gap:+.3f}, {'within' if abs(gap) <= self.published[1] else 'outside'} ± {self.published[1]:.3f}"


def summarise(tasks: Sequence[Task]) -> list[Row]:
    """One row per set and network over the repetitions that are done."""
    groups: dict[tuple[str, str], list[Task]] = {}
    for task in tasks:
        if task.is_done():
            groups.setdefault((task.data.name, task.network), []).append(task)
    return [_row(name, network, members) for (name, network), members in groups.items()]


def _row(name: str, network: str, tasks: Sequence[Task]) -> Row:
    results = [_read(task) for task in tasks]
    chosen = paper(tasks[0].paper)
    means = [float(result.accuracy.mean()) for result in results]
    errors = [float(result.accuracy.std(ddof=1) / np.sqrt(len(result.accuracy))) for result in results]
    areas = [area for task, result in zip(tasks, results, strict=True) for area in _areas(task, result)]
    return Row(
        name=name,
        network=network,
        repeats=len(tasks),
        accuracy=float(np.concatenate([result.accuracy for result in results]).mean()),
        error=float(np.mean(errors)),
        repeat_std=float(np.std(means, ddof=1)) if len(means) > 1 else None,
        epoch_by_test=float(np.concatenate([result.best_accuracy for result in results]).mean()),
        both_by_test=float(np.concatenate([result.best_threshold_accuracy for result in results]).mean()),
        auroc=float(np.mean(areas)) if areas else None,
        published=chosen.published.get((name, network)),
        selects_on_test=chosen.selects_on_test,
    )


def _read(task: Task) -> Repetition:
    arrays = read_json(task.file)["result"]
    return Repetition(**{name: np.array(values) for name, values in arrays.items()})


def _areas(task: Task, result: Repetition) -> Iterator[float]:
    for fold in np.unique(result.fold):
        mine = result.fold == fold
        label = task.data.label[result.bag[mine]]
        if len(np.unique(label)) == 2:
            yield float(roc_auc_score(label, result.probability[mine]))


HEADER = [
    "set", "network", "repetitions", "accuracy ± s.e. over folds", "std over repetitions", "AUROC",
    "epoch by the TEST fold", "epoch and threshold by it", "published", "difference",
]  # fmt: skip


def texts(row: Row) -> list[str]:
    """A row of the table for people."""
    published = "-" if row.published is None else f"{row.published[0]:.3f} ± {row.published[1]:.3f}"
    return [
        row.name,
        row.network,
        str(row.repeats),
        f"{row.accuracy:.3f} ± {row.error:.3f}",
        "-" if row.repeat_std is None else f"{row.repeat_std:.3f}",
        "-" if row.auroc is None else f"{row.auroc:.3f}",
        f"({row.epoch_by_test:.3f})",
        f"({row.both_by_test:.3f})",
        published,
        row.verdict,
    ]


def notes(chosen: Paper, recipe: Recipe, data: MILSet) -> list[str]:
    """Sentences that say what was done and what is not verified."""
    changed = "changed from the recipe of this set"
    where = changed if data.name in chosen.recipes else "the defaults: the paper has no row for this set"
    where = "the recipe of this set" if recipe.stated else where
    return [
        f"{data.name}: {len(data)} bags ({int(data.label.sum())} positive), {len(data.features)} instances x "
        f"{data.features.shape[1]}; {len(np.unique(data.test_fold[0]))} folds a repetition, from the file. "
        f"{chosen.optimiser}, lr {recipe.lr:g}, weight decay {recipe.weight_decay:g}, {recipe.epochs} epochs, "
        f"dropout {recipe.dropout:g} ({where}). Features standardised by each fold's training instances.",
        _comparison(chosen),
        chosen.unverified,
        "s.e. over folds: standard deviation over the folds of one repetition / sqrt(folds), mean over repetitions.",
    ]


def _comparison(chosen: Paper) -> str:
    brackets = "In brackets what is optimistic: the test fold chooses the epoch (threshold 0.5), or epoch and threshold"
    if chosen.selects_on_test:
        return (
            f"CAUTION: the published value let the TEST fold choose epoch and threshold, and is compared with the "
            f"column that does the same; that says whether the program is the same, not what the model is worth. The "
            f"column 'accuracy' chooses nothing on the test fold (last epoch, threshold 0.5). {brackets}."
        )
    return (
        f"Compared with the published value: 'accuracy', after the last epoch at threshold 0.5; nothing is chosen on "
        f"the test fold. {brackets}."
    )


def write_results(chosen: Paper, rows: Sequence[Row], sentences: Sequence[str], folder: Path) -> Path:
    """Write the table in Markdown and as JSON beside the repetitions; the Markdown's path."""
    write_json(folder / "results.json", [asdict(row) | {"verdict": row.verdict} for row in rows])
    lines: list[list[Any]] = [HEADER, ["---"] * len(HEADER), *map(texts, rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    write_text(folder / "results.md", f"{chosen.title}\n\n{text}\n\n" + "".join(f"{each}\n\n" for each in sentences))
    return folder / "results.md"
