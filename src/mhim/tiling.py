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
from mhim.annotations import OUTLINE_SUFFIXES, read_outlines
from mhim.bag import read_attributes
from mhim.batch import BatchResult, Outcome, run_batch
from mhim.cohort import SlideRow, read_slides
from mhim.config import fingerprint
from mhim.errors import ConfigError, SlideError
from mhim.heap import keep_pages
from mhim.pool import WorkerPool
from mhim.resume import is_complete
from mhim.slides import Slide, check_reader, open_slide
from mhim.slides.scale import COHORT, FILE_SOURCES
from mhim.slides.together import check_given_mpp, mixes_guesses, reading_notes, refuse_guess, scale_source
from mhim.tile_io import THUMBNAIL_SIDE_PX, save_grid
from mhim.tile_preview import write_preview
from mhim.tile_sheet import write_sheet
from mhim.tiles import TileConfig, TileGrid, grid_of, plan_tiles, refuse_upsampling, tile_boxes, tile_scale
from mhim.tissue import check_method, coverage, mask_file, read_image, segment_tissue, stored_downsamples


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
        tissue_mask: file of the tissue, or folder of such files by slide name; the slide's row wins.
        preview: whether to write a picture.
        reader: see ``mhim.slides.open_slide``.
        force_scale: given scales are right, whatever a file says.
        accept_guess: whether a scale may come from the objective power.
    """

    row: SlideRow
    out: Path
    config: TileConfig
    mpp0: float | None = None
    has_annotations: bool = False
    overwrite: bool = False
    tissue_mask: Path | None = None
    preview: bool = True
    reader: str = "auto"
    force_scale: bool = False
    accept_guess: bool = True

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

    @property
    def outline_path(self) -> Path | None:
        """The file that gives the tissue, or None where it is to be found.

        Raises:
            SlideError: the folder holds none for this slide.
        """
        given = self.row.tissue_mask
        if given is None and self.tissue_mask is not None:
            given = mask_file(self.tissue_mask, self.row.slide_id) if self.tissue_mask.is_dir() else self.tissue_mask
        return given

    @property
    def given_mpp(self) -> tuple[float | None, str]:
        """The scale of the row, else of the job, and what it is called."""
        return (self.row.mpp, COHORT) if self.row.mpp is not None else (self.mpp0, "option")

    def open(self) -> Slide:
        """The slide, at the scale that ``mhim.slides.scale.resolve_scale`` finds.

        Raises:
            SlideError: unreadable, or no mpp anywhere.
        """
        slide = open_slide(self.slide_path, self.row.slide_id, *self.given_mpp, self.reader, self.force_scale)
        if not self.accept_guess:
            refuse_guess(slide.mpp0, slide.mpp0_source, self.row.slide_id)
        return slide

    def input_fingerprint(self, slide: Slide) -> str:
        """Identity of what is read: slide, annotation, tissue mask, and the scale where it was given.

        Raises:
            SlideError: a file is missing.
        """
        given_mpp = None if slide.mpp0_source in FILE_SOURCES else slide.mpp0
        marks: dict[str, Any] = {"slide": _file_digest(self.slide_path), "mpp": given_mpp}
        if self.has_annotations:
            marks["annotation"] = None if self.row.annotation is None else _file_digest(self.row.annotation)
        outline = self.outline_path
        if outline is not None:
            marks["tissue"] = _file_digest(outline)
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
    rows: Sequence[SlideRow],
    out: Path,
    config: TileConfig,
    mpp0: float | None = None,
    overwrite: bool = False,
    tissue_mask: Path | None = None,
    preview: bool = True,
    reader: str = "auto",
    force_scale: bool = False,
) -> list[TileJob]:
    """The work on a table of slides, in its order.

    Raises:
        ConfigError: unknown tissue method, one mask file for several slides, unknown reader, or ``mpp0`` not a scale.
    """
    check_given_mpp(mpp0)
    check_reader(reader)
    check_method(config.tissue.method)
    if tissue_mask is not None and not tissue_mask.exists():
        raise ConfigError(f"--tissue-mask {tissue_mask}: no such file or folder")
    if tissue_mask is not None and not tissue_mask.is_dir() and len(rows) > 1:
        raise ConfigError(f"--tissue-mask {tissue_mask}: one file for {len(rows)} slides; give a folder of masks")
    has_annotations = any(row.annotation is not None for row in rows)
    jobs = [
        TileJob(row, out, config, mpp0, has_annotations, overwrite, tissue_mask, preview, reader, force_scale)
        for row in rows
    ]
    accept_guess = force_scale or not mixes_guesses(
        scale_source(job.row.path, *job.given_mpp) for job in jobs if job.row.path is not None
    )
    return [replace(job, accept_guess=accept_guess) for job in jobs]


def tile_slides(
    rows: Sequence[SlideRow],
    out: Path,
    config: TileConfig | None = None,
    *,
    mpp0: float | None = None,
    workers: int = 0,
    overwrite: bool = False,
    tissue_mask: Path | None = None,
    preview: bool = True,
    reader: str = "auto",
    force_scale: bool = False,
) -> BatchResult:
    """Tile slides: ``out/<slide_id>.h5`` and ``out/previews/<slide_id>.jpg`` for each.

    With previews, ``out/previews/sheet.csv``, ``sheet.html`` and ``sheet.jpg`` show the cohort and its outliers.

    Args:
        rows: the slides, see ``mhim.cohort.read_slides``.
        out: folder to write.
        config: scale, size and tissue settings.
        mpp0: micrometres per level-0 pixel for slides that say none.
        workers: processes that work on different slides at once; 0 works in this process.
        overwrite: replace outputs that were made by another configuration or input.
        tissue_mask: file of the tissue (GeoJSON or image), or folder of such files by slide name.
        preview: whether to write pictures and the sheet of the cohort.
        reader: see ``mhim.slides.open_slide``.
        force_scale: given scales are right, whatever a file says; guessed ones may stand beside known ones.

    Returns:
        What was done, skipped and failed; one slide's failure does not stop the others.

    Raises:
        ConfigError: as ``tile_jobs``.
    """
    jobs = tile_jobs(rows, out, config or TileConfig(), mpp0, overwrite, tissue_mask, preview, reader, force_scale)
    result = _run(jobs, workers)
    complete = {*result.done, *result.skipped}
    paths = [job.path for job in jobs if job.row.slide_id in complete]
    result.remarks += reading_notes(read_attributes(path) for path in paths)
    if preview and result.done:
        write_sheet(out, paths)
    return result


def _run(jobs: list[TileJob], workers: int) -> BatchResult:
    """Work on slides in order, a few ahead in other processes."""
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
    keep_pages()
    with job.open() as slide:
        marks = (fingerprint(job.config), job.input_fingerprint(slide))
        if is_complete(job.path, *marks, job.overwrite):
            return Outcome.SKIPPED
        grid = make_grid(slide, job.config, str(job.slide_path.resolve()), marks, job.outline_path)
        if job.has_annotations:
            grid = _annotated(grid, slide, job.row.annotation)
    if job.preview:
        write_preview(job.out / "previews" / f"{grid.slide_id}.jpg", grid)
    save_grid(job.path, grid)
    return Outcome.DONE


def make_grid(
    slide: Slide, config: TileConfig, slide_path: str, fingerprints: tuple[str, str], outline: Path | None = None
) -> TileGrid:
    """The tiles of an open slide.

    Args:
        slide: any slide.
        config: what is wanted.
        slide_path: what to record as its file.
        fingerprints: of the configuration and of the input, to record.
        outline: file that gives the tissue, or None to find it.

    Raises:
        SlideError: as ``segment_tissue`` and ``plan_tiles``.
    """
    spec = config.tiles
    refuse_upsampling(slide.mpp0, spec, slide.slide_id)
    tissue = segment_tissue(slide, config.tissue, outline)
    downsamples = stored_downsamples(slide)
    xy_px0 = plan_tiles(slide.size_px0, slide.mpp0, tissue, spec, slide.slide_id, downsamples)
    scale = tile_scale(spec, slide.mpp0, downsamples, slide.slide_id)
    attributes = {
        "slide_id": slide.slide_id,
        "slide_path": slide_path,
        "mpp": scale.mpp,
        "slide_mpp": slide.mpp0,
        "slide_mpp_source": slide.mpp0_source,
        "tile_size_px": spec.size_px,
        "tile_size_level0": scale.side_px0,
        "overlap": max(0, spec.size_px - spec.step_px),
        "level0_width": slide.size_px0[0],
        "level0_height": slide.size_px0[1],
        "reader": slide.reader,
        "reader_version": slide.reader_version,
        "tissue_mask_id": tissue.identity,
        "tissue_method": tissue.method,
        "grid": grid_of(spec, tissue),
        "config_fingerprint": fingerprints[0],
        "input_fingerprint": fingerprints[1],
        "notes": "\n".join(slide.notes),
        "tool": "mhim",
        "tool_version": mhim.__version__,
    }
    return TileGrid(slide.slide_id, xy_px0, tissue, attributes, thumbnail=slide.thumbnail(THUMBNAIL_SIDE_PX))


def annotation_fractions(path: Path, size_px0: tuple[int, int], boxes_px0: NDArray[np.float64]) -> NDArray[np.float32]:
    """Share of each box inside an annotation.

    Args:
        path: outlines in level-0 pixels (see ``mhim.annotations``), or an image of the whole slide at any scale whose
            non-zero pixels are inside.
        size_px0: slide (width, height) in level-0 pixels.
        boxes_px0: (N, 4) left, top, right, bottom in level-0 pixels.

    Returns:
        (N,) float32 in [0, 1].

    Raises:
        SlideError: missing, not readable as outlines or as an image, or an image not of the slide's shape.
    """
    if path.suffix.lower() in OUTLINE_SUFFIXES:
        return read_outlines(path).fractions(boxes_px0).astype(np.float32)
    inside, px0_per_cell = read_image(path, size_px0, "annotation")
    return coverage(inside, px0_per_cell, boxes_px0).astype(np.float32)


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
