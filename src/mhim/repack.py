"""Bags packed for learning: features in half precision in one piece that is mapped, with a digest and a checksum.

The source is a folder of our own bags or of another tool's files, as ``mhim convert`` reads them. Of our own bags
everything is kept; the packed folder stands in for the other one wherever bags are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from mhim.artefacts import atomic_path, quick_digest
from mhim.bag import Bag, check_content, create_file, load_bag, read_attributes, seal, to_storage, write_facts
from mhim.batch import BatchResult, Outcome, run_batch
from mhim.config import fingerprint
from mhim.convert import feature_files, known_attributes
from mhim.errors import ArtefactError, FeatureError
from mhim.foreign import ConvertConfig, read_foreign

OWN_DATASETS = ("features", "coords", "annotation_fraction")


@dataclass(frozen=True)
class Packing:
    """One file to pack.

    Attributes:
        source: the file.
        target: the packed bag.
        made_by: digest of the source and of the options.
        is_done: whether the target is that already.
    """

    source: Path
    target: Path
    made_by: str
    is_done: bool


def plan_repack(source: Path, out: Path, config: ConvertConfig, keep_precision: bool) -> list[Packing]:
    """What to pack; nothing is written.

    Args:
        source: folder of bags, ours or another tool's.
        out: folder of the packed bags.
        config: what files of other tools do not say, and the precision.
        keep_precision: our own bags keep theirs, instead of ``config.precision``.

    Raises:
        FeatureError: no such folder, nothing to pack, or two files of one slide.
        ArtefactError: ``out`` is the source.
    """
    plans = []
    for path in feature_files(source, out, "to pack"):
        target = out / f"{path.stem}.h5"
        made_by = fingerprint([config, keep_precision, quick_digest(path)])
        plans.append(Packing(path, target, made_by, _is_packed(target, made_by)))
    return plans


def repack(
    plans: list[Packing], config: ConvertConfig, keep_precision: bool = True, overwrite: bool = False
) -> BatchResult:
    """Pack what is not packed yet; a bag that fails does not stop the others.

    Args:
        plans: of :func:`plan_repack`.
        config: see there.
        keep_precision: see there.
        overwrite: replace files of another source or other options.
    """

    def work(plan: Packing) -> Outcome:
        if plan.is_done:
            return Outcome.SKIPPED
        if plan.target.exists() and not overwrite:
            raise ArtefactError(
                f"{plan.target}: exists, of another source or other options; give another --out, or --overwrite"
            )
        bag = _read(plan, config, keep_precision)
        _write(plan, bag)
        return Outcome.DONE

    return run_batch(plans, work, name=lambda plan: plan.source.name, label="packing")


def _is_packed(target: Path, made_by: str) -> bool:
    try:
        return target.is_file() and read_attributes(target).get("packed_by") == made_by
    except FeatureError:
        return False


def _is_own(path: Path) -> bool:
    """Whether a file is a bag of this program; whether it is complete is seen when it is loaded."""
    if not h5py.is_hdf5(path):
        return False
    with h5py.File(path, "r") as file:
        return "complete" in file.attrs


def _read(plan: Packing, config: ConvertConfig, keep_precision: bool) -> Bag:
    """The bag of a file, checked, in the precision to store."""
    if _is_own(plan.source):
        bag = load_bag(plan.source)
        precision = str(bag.features.dtype) if keep_precision else config.precision
        attributes = dict(bag.attributes)
    else:
        features, xy_px0, found = read_foreign(plan.source, config)
        bag, precision, attributes = (
            Bag(plan.source.stem, features, xy_px0),
            config.precision,
            known_attributes(config) | found,
        )
        check_content(bag, plan.source)
    attributes["packed_by"] = plan.made_by
    stored = to_storage(bag.features, precision, plan.source)
    return seal(Bag(bag.slide_id, stored, bag.xy_px0, attributes, bag.annotation_fraction))


def _write(plan: Packing, bag: Bag) -> None:
    """Write a packed bag: to a temporary name, then renamed; ``complete`` is set last."""
    with atomic_path(plan.target) as temporary, create_file(temporary) as file:
        file.create_dataset("features", data=bag.features)
        attributes = {key: value for key, value in bag.attributes.items() if key != "complete"}
        write_facts(file, Bag(bag.slide_id, np.zeros((0, 0)), bag.xy_px0, attributes, bag.annotation_fraction))
        if _is_own(plan.source):
            with h5py.File(plan.source, "r") as source:
                for name in sorted(set(source) - set(OWN_DATASETS)):
                    source.copy(name, file)
        file.attrs["complete"] = True
