"""The work of ``mhim tile``: slides -> grid files and previews."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mhim
import mhim.artefacts as artefacts
from mhim.batch import BatchResult, Outcome, run_batch
from mhim.cohort import SlideRow, read_slides
from mhim.config import fingerprint
from mhim.errors import SlideError
from mhim.pool import WorkerPool
from mhim.resume import is_complete
from mhim.slides import Slide, open_slide
from mhim.tile_io import THUMBNAIL_SIDE_PX, jpeg_bytes, save_grid
from mhim.tiles import TileConfig, TileGrid, plan_tiles, refuse_upsampling, tile_boxes
from mhim.tissue import TissueMask, coverage, segment_tissue

ASPECT_TOLERANCE = 0.02
TISSUE_COLOUR = (0, 160, 0)
TILE_COLOUR = (40, 90, 200)


@dataclass(frozen=True)
class TileJob:
    """One slide to tile.

    Attributes:
        row: the slide.
        out: folder of the grid files.
        config: what is wanted.
        mpp0: micrometres per level-0 pixel for a slide that says none and has none in its row.
        has_annotations: whether any slide of the table has an annotation; then an empty cell means none inside.
        overwrite: whether to replace an output that something else made.
    """

    row: SlideRow
    out: Path
    config: TileConfig
    mpp0: float | None = None
    has_annotations: bool = False
    overwrite: bool = False

    @property
    def path(self) -> Path:
        """The grid file."""
        return self.out / f"{self.row.slide_id}.h5"

    @property
    def slide_path(self) -> Path:
        """The slide file.

        Raises:
            SlideError: the row has none.
        """
        if self.row.path is None:
            raise SlideError(f"{self.row.slide_id}: no path; fill the column 'path' of the cohort")
        return self.row.path

    def open(self) -> Slide:
        """The slide, with the scale of its row, else of the job, where its metadata says none.

        Raises:
            SlideError: unreadable, or no mpp anywhere.
        """
        given = (self.row.mpp, "cohort") if self.row.mpp is not None else (self.mpp0, "option")
        return open_slide(self.slide_path, self.row.slide_id, *given)

    def input_fingerprint(self, slide: Slide) -> str:
        """Identity of what is read: slide, annotation, and the scale where it was given.

        Raises:
            SlideError: a file is missing.
        """
        given_mpp = None if slide.mpp0_source == "metadata" else slide.mpp0
        marks: dict[str, Any] = {"slide": _file_digest(self.slide_path), "mpp": given_mpp}
        if self.has_annotations:
            marks["annotation"] = None if self.row.annotation is None else _file_digest(self.row.annotation)
        return fingerprint(marks)


def slide_rows(source: Path) -> list[SlideRow]:
    """Slides to be read, as ``mhim.cohort.read_slides``, but a folder with the DICOM files of one slide is one slide.

    Raises:
        CohortError: as ``read_slides``.
    """
    if source.is_dir() and any(source.glob("*.dcm")):
        from mhim.slides.openslide import is_dicom_slide

        if is_dicom_slide(source):
            name = source.resolve().name
            return [SlideRow(name, name, path=source)]
    return read_slides(source)


def tile_jobs(
    rows: Sequence[SlideRow], out: Path, config: TileConfig, mpp0: float | None = None, overwrite: bool = False
) -> list[TileJob]:
    """The work on a table of slides, in its order."""
    has_annotations = any(row.annotation is not None for row in rows)
    return [TileJob(row, out, config, mpp0, has_annotations, overwrite) for row in rows]


def tile_slides(
    rows: Sequence[SlideRow],
    out: Path,
    config: TileConfig | None = None,
    *,
    mpp0: float | None = None,
    workers: int = 0,
    overwrite: bool = False,
) -> BatchResult:
    """Tile slides: ``out/<slide_id>.h5`` and ``out/previews/<slide_id>.jpg`` for each.

    Args:
        rows: the slides, see ``mhim.cohort.read_slides``.
        out: folder to write.
        config: scale, size and tissue settings.
        mpp0: micrometres per level-0 pixel for slides that say none.
        workers: processes that work on different slides at once; 0 works in this process.
        overwrite: replace outputs that were made by another configuration or input.

    Returns:
        What was done, skipped and failed; one slide's failure does not stop the others.
    """
    jobs = tile_jobs(rows, out, config or TileConfig(), mpp0, overwrite)
    place = {job.row.slide_id: index for index, job in enumerate(jobs)}
    with WorkerPool(workers) as pool:
        ahead: dict[str, Future[Outcome]] = {}

        def work(job: TileJob) -> Outcome:
            slide_id = job.row.slide_id
            for later in jobs[place[slide_id] : place[slide_id] + 2 * workers + 1]:
                if later.row.slide_id not in ahead:
                    ahead[later.row.slide_id] = pool.submit(tile_slide, later)
            try:
                return ahead.pop(slide_id).result()
            except BrokenProcessPool:
                ahead.clear()
                pool.restart()
                return pool.alone(tile_slide, job)

        return run_batch(jobs, work, name=lambda job: job.row.slide_id, label="tile")


def tile_slide(job: TileJob) -> Outcome:
    """Tile one slide and write its grid file and preview.

    Raises:
        SlideError: unreadable, without mpp, dark, without tissue, or too coarse for the tiles wanted.
        ArtefactError: the output exists and was made by something else.
    """
    with job.open() as slide:
        marks = (fingerprint(job.config), job.input_fingerprint(slide))
        if is_complete(job.path, *marks, job.overwrite):
            return Outcome.SKIPPED
        grid = make_grid(slide, job.config, str(job.slide_path.resolve()), marks)
        if job.has_annotations:
            grid = _annotated(grid, slide, job.row.annotation)
    write_preview(job.out / "previews" / f"{grid.slide_id}.jpg", grid)
    save_grid(job.path, grid)
    return Outcome.DONE


def make_grid(slide: Slide, config: TileConfig, slide_path: str, fingerprints: tuple[str, str]) -> TileGrid:
    """The tiles of an open slide.

    Args:
        slide: any slide.
        config: what is wanted.
        slide_path: what to record as its file.
        fingerprints: of the configuration and of the input, to record.

    Raises:
        SlideError: as ``segment_tissue`` and ``plan_tiles``.
    """
    spec = config.tiles
    refuse_upsampling(slide.mpp0, spec, slide.slide_id)
    tissue = segment_tissue(slide, config.tissue)
    xy_px0 = plan_tiles(slide.size_px0, slide.mpp0, tissue, spec, slide.slide_id)
    attributes = {
        "slide_id": slide.slide_id,
        "slide_path": slide_path,
        "mpp": spec.mpp,
        "slide_mpp": slide.mpp0,
        "slide_mpp_source": slide.mpp0_source,
        "tile_size_px": spec.size_px,
        "tile_size_level0": spec.size_px0(slide.mpp0),
        "overlap": max(0, spec.size_px - spec.step_px),
        "level0_width": slide.size_px0[0],
        "level0_height": slide.size_px0[1],
        "reader": slide.reader,
        "reader_version": slide.reader_version,
        "tissue_mask_id": tissue.identity,
        "config_fingerprint": fingerprints[0],
        "input_fingerprint": fingerprints[1],
        "tool": "mhim",
        "tool_version": mhim.__version__,
    }
    return TileGrid(slide.slide_id, xy_px0, tissue, attributes, thumbnail=slide.thumbnail(THUMBNAIL_SIDE_PX))


def annotation_fractions(path: Path, size_px0: tuple[int, int], boxes_px0: NDArray[np.float64]) -> NDArray[np.float32]:
    """Share of each box inside an annotation image.

    Args:
        path: an image of the whole slide at any scale; non-zero pixels are inside.
        size_px0: slide (width, height) in level-0 pixels.
        boxes_px0: (N, 4) left, top, right, bottom in level-0 pixels.

    Returns:
        (N,) float32 in [0, 1].

    Raises:
        SlideError: missing, not an image, or not of the slide's shape.
    """
    import cv2

    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if pixels is None:
        raise SlideError(f"{path}: annotation is missing or not an image")
    inside = np.asarray(np.atleast_3d(np.asarray(pixels))[..., :3].any(axis=2))
    height, width = pixels.shape[:2]
    px0_per_cell = (size_px0[0] / width, size_px0[1] / height)
    slack = ASPECT_TOLERANCE + 1.0 / min(width, height)
    if abs(px0_per_cell[0] / px0_per_cell[1] - 1) > slack:
        raise SlideError(
            f"{path}: annotation of {width} x {height} px does not have the shape of the slide "
            f"({size_px0[0]} x {size_px0[1]}); it must cover the whole slide"
        )
    return coverage(inside, px0_per_cell, boxes_px0).astype(np.float32)


def write_preview(path: Path, grid: TileGrid) -> None:
    """Write a picture of the slide with the outline of the tissue and the tiles."""
    import cv2

    if grid.thumbnail is None:
        return
    picture = grid.thumbnail.copy()
    height, width = picture.shape[:2]
    scale = width / grid.attributes["level0_width"]
    side = grid.attributes["tile_size_level0"]
    for left, top, right, bottom in np.rint(tile_boxes(grid.xy_px0, side) * scale).astype(int).tolist():
        cv2.rectangle(picture, (left, top), (right, bottom), TILE_COLOUR, 1)
    cv2.drawContours(picture, _outlines(grid.tissue, scale, (width, height)), -1, TISSUE_COLOUR, 2)
    with artefacts.atomic_path(path) as temporary:
        temporary.write_bytes(jpeg_bytes(picture))


def _outlines(tissue: TissueMask, scale: float, size_px: tuple[int, int]) -> Sequence[NDArray[Any]]:
    import cv2

    x, y = (side * scale for side in tissue.px0_per_cell)
    stretch = np.array([[x, 0, 0], [0, y, 0]], dtype=np.float64)
    cells = cv2.warpAffine(tissue.cells.astype(np.uint8), stretch, size_px, flags=cv2.INTER_NEAREST)
    return cv2.findContours(cells, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]


def _annotated(grid: TileGrid, slide: Slide, annotation: Path | None) -> TileGrid:
    boxes = tile_boxes(grid.xy_px0, grid.attributes["tile_size_level0"])
    if annotation is None:
        fractions = np.zeros(len(grid), dtype=np.float32)
    else:
        fractions = annotation_fractions(annotation, slide.size_px0, boxes)
    return replace(grid, annotation_fraction=fractions)


def _file_digest(path: Path) -> str:
    if path.is_dir():
        return fingerprint({member.name: artefacts.quick_digest(member) for member in sorted(path.iterdir())})
    if not path.is_file():
        raise SlideError(f"{path}: no such file")
    return artefacts.quick_digest(path)
