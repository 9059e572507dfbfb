"""Hard-instance maps: what a teacher attends to and what the mask would take from the student, over training.

::

    OUT/<slide_id>/<run>_mining.png    columns: start, middle, best, last; rows: teacher's salience, mask
    OUT/<slide_id>/<run>_mining.csv    per tile and moment: salience, kept, masked as high, low, at random
    OUT/<slide_id>/<run>_mining.json   what was drawn from what (written last)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from mhim.artefacts import atomic_path, quick_digest, write_json
from mhim.batch import BatchResult, Outcome, run_batch
from mhim.config import fingerprint
from mhim.errors import ArtefactError, FeatureError
from mhim.maps.config import MapConfig
from mhim.maps.lattice import Lattice, tile_size_or_step
from mhim.maps.panel import Caption, limit_width, panel
from mhim.maps.render import Rgb, draw_map, draw_outline
from mhim.maps.scale import Scale
from mhim.maps.stamp import is_current
from mhim.maps.study import RunMaps, Study
from mhim.maps.underlay import Underlay, make_underlay
from mhim.training.runs import Run, write_table
from mhim.training.snapshots import MOMENTS, teacher_file

if TYPE_CHECKING:
    from mhim.bag import Bag

FATES = ("kept", "high", "low", "random")
COLOURS: dict[str, tuple[int, int, int]] = {
    "kept": (0, 158, 115),
    "high": (213, 94, 0),
    "low": (0, 114, 178),
    "random": (150, 150, 150),
}
"""Okabe and Ito's colours, which colour-blind readers tell apart."""
OPACITY, COLUMN_PX = 0.62, 360


@dataclass(frozen=True)
class MinedSlide:
    """What a teacher of one moment makes of a slide.

    Attributes:
        moment: start, middle, best or last.
        epochs_done, epochs: where training stood.
        salience: (N,) what the mask ranks, mean over heads.
        kept, high, low, random: (N,) bool; an instance may be masked for several reasons.
    """

    moment: str
    epochs_done: int
    epochs: int
    salience: NDArray[np.float64]
    kept: NDArray[np.bool_]
    high: NDArray[np.bool_]
    low: NDArray[np.bool_]
    random: NDArray[np.bool_]

    @property
    def fate(self) -> NDArray[np.int64]:
        """(N,) index into ``FATES``; high before low before random where several hold."""
        fate = np.full(len(self.kept), FATES.index("random"))
        for name in ("low", "high", "kept"):
            fate[getattr(self, name)] = FATES.index(name)
        return fate


def saved_moments(source: RunMaps, fold: int) -> list[str]:
    """The moments whose teacher a fold kept.

    Raises:
        ArtefactError: none: another method, or ``train.keep_teachers`` was off.
    """
    folder = source.run.fold_path(fold)
    found = [moment for moment in MOMENTS if teacher_file(folder, moment).is_file()]
    if not found:
        raise ArtefactError(f"{folder}: no teacher kept; train with mhim-v1 or mhim-v2 and train.keep_teachers=true")
    return found


def mine(source: RunMaps, bag: Bag, fold: int, moment: str, seed: int = 0) -> MinedSlide:
    """Rank a slide's tiles by a kept teacher and mask as training did at that moment.

    The teacher is in evaluation mode; the random part of the mask is drawn from ``seed``, so it is one example of
    what training drew anew at every step.

    Args:
        source: a run of a masking method.
        bag: the slide's tiles.
        fold: which fold's teacher.
        moment: one of :func:`saved_moments`.
        seed: of the random part.
    """
    import torch

    from mhim.checkpoint import load_model, read_metadata
    from mhim.masks import masks
    from mhim.methods.mhim import MHIMConfig, teacher_salience

    path = teacher_file(source.run.fold_path(fold), moment)
    facts, teacher = read_metadata(path), load_model(path)
    done, epochs = int(facts["epochs_done"]), int(facts["epochs"])
    method = source.run.config.method
    assert isinstance(method, MHIMConfig)
    with torch.inference_mode():
        salience = teacher_salience(teacher(torch.from_numpy(bag.features)), method.teacher_score)
        generator = torch.Generator().manual_seed(seed)
        chosen = masks.build(method.mask).select(salience, min(done, epochs - 1) / epochs, generator)
    kept = np.zeros(len(bag), dtype=np.bool_)
    kept[chosen.keep_index.numpy()] = True
    sets = (chosen.high.numpy(), chosen.low.numpy(), chosen.random.numpy())
    return MinedSlide(moment, done, epochs, salience.double().mean(dim=0).numpy(), kept, *sets)


def draw_fates(underlay: Underlay, lattice: Lattice, fate: NDArray[np.int64]) -> Rgb:
    """(h, w, 3) uint8: every tile in the colour of its fate over the muted slide; overlapping tiles mix."""
    shares = np.stack([lattice.raster((fate == index).astype(np.float64)) for index in range(len(FATES))], axis=-1)
    colour = shares @ np.array([COLOURS[name] for name in FATES], dtype=np.float64)
    seen = underlay.look_up(lattice, colour)
    ground = (underlay.muted if underlay.is_slide else underlay.rgb).astype(np.float64)
    mixed = np.where(np.isnan(seen), ground, (1 - OPACITY) * ground + OPACITY * np.nan_to_num(seen))
    return draw_outline(np.rint(mixed).astype(np.uint8), underlay)


def draw_mining(
    runs: Sequence[Run],
    out: Path,
    config: MapConfig,
    slides: Sequence[str] | None = None,
    moments: Sequence[str] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> BatchResult:
    """Draw what teachers mask, for slides by the fold that tested them: the teacher never learned from them.

    What is drawn already from the same run, teachers, bag, slide and options is kept.

    Args:
        runs: complete runs of masking methods.
        out: folder to write.
        config: size and place of the inputs; ``fold`` draws slides that the run does not know.
        slides: slides to draw; None takes a selection of ``config.max_slides``.
        moments: which of start, middle, best, last; None takes all that were kept.
        seed: of the random part of the masks.
        overwrite: replace pictures of another configuration or input.

    Raises:
        ArtefactError: a run kept no teacher.
        CohortError: a slide that was not tested.
    """
    study = Study.of(runs, config)
    for source in study.runs:
        saved_moments(source, source.run.folds[0])

    def work(slide_id: str) -> Outcome:
        drawn = False
        for source in study.runs:
            stamp = f"{source.slug}_mining.json"
            options = [config.look, sorted(moments) if moments is not None else None, seed]
            identity = {
                "config_fingerprint": fingerprint(options),
                "input_fingerprint": _input(study, source, slide_id),
            }
            if is_current(out / slide_id, stamp, identity, "mining pictures", overwrite):
                continue
            _draw_slide(out, study, source, slide_id, config, moments, seed)
            files = [f"{source.slug}_mining.csv", f"{source.slug}_mining.png"]
            write_json(out / slide_id / stamp, identity | {"tool": "mhim", "files": files})
            drawn = True
        return Outcome.DONE if drawn else Outcome.SKIPPED

    return run_batch(study.chosen(config, slides), work, name=lambda slide_id: slide_id, label="mining")


def _input(study: Study, source: RunMaps, slide_id: str) -> str:
    """Fingerprint of what a slide's picture is made from: one run and its teachers, the bag, slide and annotation."""
    fold = source.prediction(slide_id).fold
    teachers = [teacher_file(source.run.fold_path(fold), moment) for moment in saved_moments(source, fold)]
    alone = Study((source,), study.rows, study.slides)
    return fingerprint([alone.fingerprint(slide_id), [[path.name, quick_digest(path)] for path in teachers]])


def _draw_slide(
    out: Path,
    study: Study,
    source: RunMaps,
    slide_id: str,
    config: MapConfig,
    moments: Sequence[str] | None,
    seed: int,
) -> None:
    bag, said = source.bag(slide_id), source.prediction(slide_id)
    if bag.xy_px0 is None:
        raise FeatureError(f"{source.bag_path(slide_id)}: no coordinates ('coords'), so its tiles have no place")
    kept = saved_moments(source, said.fold)
    wanted = [moment for moment in kept if moments is None or moment in moments]
    if not wanted:
        raise ArtefactError(f"{source.run.fold_path(said.fold)}: kept no teacher of {', '.join(moments or ())}")
    mined = [mine(source, bag, said.fold, moment, seed) for moment in wanted]
    tile_px0, _ = tile_size_or_step(bag.xy_px0, bag.tile_size_px0, source.bag_path(slide_id))
    lattice = Lattice.of_tiles(bag.xy_px0, tile_px0)
    underlay = make_underlay(bag, study.rows.get(slide_id), lattice, config.max_side_px)
    picture = mining_picture(source, slide_id, bag, mined, lattice, underlay)
    folder = out / slide_id
    write_table(folder / f"{source.slug}_mining.csv", mining_table(bag, mined))
    with atomic_path(folder / f"{source.slug}_mining.png") as temporary:
        picture.save(temporary, format="PNG", compress_level=4)


def mining_table(bag: Bag, mined: Sequence[MinedSlide]) -> pd.DataFrame:
    """One row a tile: place, annotated share where known, and per moment salience, kept, high, low, random."""
    assert bag.xy_px0 is not None
    columns: dict[str, object] = {"x_px0": bag.xy_px0[:, 0], "y_px0": bag.xy_px0[:, 1]}
    if bag.annotation_fraction is not None:
        columns["annotation_fraction"] = bag.annotation_fraction
    for each in mined:
        columns[f"{each.moment}_salience"] = each.salience
        columns |= {f"{each.moment}_{name}": getattr(each, name).astype(int) for name in FATES}
    return pd.DataFrame(columns)


def mining_picture(
    source: RunMaps, slide_id: str, bag: Bag, mined: Sequence[MinedSlide], lattice: Lattice, underlay: Underlay
) -> Image.Image:
    """Columns: moments; rows: the teacher's salience, each on its own scale, and what is masked."""
    columns: list[list[tuple[str, Rgb]]] = []
    for each in mined:
        # the scale of attention fits every salience: from 0 (or the lowest) to the highest value
        scale = Scale.fit("attention", [each.salience], len(source.run.classes), 0.85, 0.12)
        top = limit_width(draw_map(underlay, lattice, each.salience, scale), COLUMN_PX)
        fates = limit_width(draw_fates(underlay, lattice, each.fate), COLUMN_PX)
        where = f"{each.moment}, {each.epochs_done} of {each.epochs} epochs"
        columns.append([(f"{where}: salience to {each.salience.max():.3g}", top), (_words(each, bag), fates)])
    keys = ", ".join(f"{name} = {said}" for name, said in _KEY.items())
    lines = [
        f"{source.run.config.title}, fold {source.prediction(slide_id).fold}: its teacher never saw this slide",
        keys,
        "salience: what the mask ranks, raw, each picture on its own scale from pale to yellow; shares are of tiles",
    ]
    return panel(Caption(slide_id, tuple(lines)), columns, [None] * len(columns))


_KEY = {
    "orange": "masked, salient",
    "blue": "masked, least salient",
    "grey": "masked at random",
    "green": "kept for the student",
}


def _words(each: MinedSlide, bag: Bag) -> str:
    text = f"kept {each.kept.mean():.0%}, high {each.high.mean():.1%}"
    if bag.annotation_fraction is not None and (bag.annotation_fraction >= 0.5).any():
        inside = bag.annotation_fraction >= 0.5
        text += f"; of the tumour {each.kept[inside].mean():.0%}, {each.high[inside].mean():.0%}"
    return text
