"""A cohort of synthetic slides: made in worker processes, resumed after an interruption, tables written last."""

from __future__ import annotations

import contextlib
import csv
import io
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2

from mhim.artefacts import read_json, write_json, write_text
from mhim.batch import BatchResult, Outcome, run_batch
from mhim.errors import ArtefactError
from mhim.pool import end_with_parent
from mhim.synth.config import SynthConfig
from mhim.synth.optics import SCANNERS
from mhim.synth.plan import SlidePlan, plan_cohort
from mhim.synth.slide import GENERATOR, files_of, identity, is_complete, make_slide

MANIFEST = "synth.json"
COHORT_TABLE = "cohort.csv"
TRUTH_TABLE = "truth.csv"
TRUTH_COLUMNS = ("slide_id", "tissue_um2", "tumour_um2", "tumour_fraction", "kinds", "scanner", "seed")
COHORT_COLUMNS = ("slide_id", "case_id", "label", "path", "site", "annotation")


def make_cohort(out: Path, config: SynthConfig, workers: int = 2, *, overwrite: bool = False) -> BatchResult:
    """Make a synthetic cohort; finished slides of the same configuration are kept.

    Writes ``slides/ID.tiff``, ``annotations/ID.png`` for positive slides, ``truth/ID.json``, ``synth.json`` (the
    configuration) and, once every slide is whole, ``truth.csv`` and ``cohort.csv``. The bytes depend on the
    configuration only, not on ``workers``.

    Args:
        out: folder to write.
        config: what to make.
        workers: processes; 0 works in this one.
        overwrite: replace a cohort of another configuration instead of refusing.

    Raises:
        ArtefactError: the folder holds a cohort of another configuration, or a cohort table of other origin.
    """
    todo = missing(out, config, overwrite=overwrite)
    if not _is_made_by(out, config):
        _clear(out)
        write_json(out / MANIFEST, _manifest(config))
    plans = plan_cohort(config)
    with _slide_makers(out, config, todo, workers) as make:
        result = run_batch(plans, make, name=lambda plan: plan.slide_id, label="synth")
    if not result.failed:
        _write_tables(out, plans)
    return result


def missing(out: Path, config: SynthConfig, *, overwrite: bool = False) -> list[SlidePlan]:
    """The slides that :func:`make_cohort` would make, given what is already in the folder.

    Raises:
        ArtefactError: the folder holds a cohort of another origin and ``overwrite`` is not set.
    """
    plans = plan_cohort(config)
    if _is_made_by(out, config):
        return [plan for plan in plans if not is_complete(out, config, plan)]
    for name, whose in ((MANIFEST, "of another configuration"), (COHORT_TABLE, "that mhim synth did not make")):
        if (out / name).exists() and not overwrite:
            raise ArtefactError(f"{out / name}: a cohort {whose}; give another folder with -o, or --overwrite")
    return plans


def _is_made_by(out: Path, config: SynthConfig) -> bool:
    """Whether the folder holds a cohort, whole or partial, of this configuration."""
    return (out / MANIFEST).is_file() and read_json(out / MANIFEST).get("made_by") == identity(config)


def _manifest(config: SynthConfig) -> dict[str, object]:
    return {"made_by": identity(config), "generator": GENERATOR, "config": config.model_dump(mode="json")}


def _clear(out: Path) -> None:
    """Remove the tables, and every slide that has a record here; files of other origin stay."""
    for name in (COHORT_TABLE, TRUTH_TABLE, MANIFEST):
        (out / name).unlink(missing_ok=True)
    for record in (out / "truth").glob("*.json"):
        files = files_of(out, record.stem)
        for path in (files.slide, files.annotation, files.record):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _slide_makers(
    out: Path, config: SynthConfig, todo: Sequence[SlidePlan], workers: int
) -> Iterator[Callable[[SlidePlan], Outcome]]:
    """A function that makes a slide, or waits for the worker that does; workers start on all slides at once."""
    if not workers or not todo:
        names = {plan.slide_id for plan in todo}
        yield lambda plan: _make(out, config, plan) if plan.slide_id in names else Outcome.SKIPPED
        return
    pool = ProcessPoolExecutor(min(workers, len(todo)), mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        waiting = {plan.slide_id: pool.submit(_make, out, config, plan) for plan in todo}
        yield lambda plan: waiting[plan.slide_id].result() if plan.slide_id in waiting else Outcome.SKIPPED
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which lets running slides finish, and use one thread per worker."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def _make(out: Path, config: SynthConfig, plan: SlidePlan) -> Outcome:
    make_slide(out, config, plan)
    return Outcome.DONE


def _write_tables(out: Path, plans: Sequence[SlidePlan]) -> None:
    """Write ``truth.csv`` and, last of all, ``cohort.csv``; paths in it count from its folder."""
    truth, cohort = [], []
    for plan in plans:
        files = files_of(out, plan.slide_id)
        record = read_json(files.record)
        truth.append([record[column] for column in TRUTH_COLUMNS])
        annotation = files.annotation.relative_to(out).as_posix() if plan.kinds else ""
        site, slide = SCANNERS[plan.scanner].name, files.slide.relative_to(out).as_posix()
        cohort.append([plan.slide_id, plan.case_id, plan.label, slide, site, annotation])
    write_text(out / TRUTH_TABLE, _csv(TRUTH_COLUMNS, truth))
    write_text(out / COHORT_TABLE, _csv(COHORT_COLUMNS, cohort))


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
