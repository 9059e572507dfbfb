"""Exports of the slides of a study, slide by slide.

::

    OUT/<slide_id>/<run>.geojson        QuPath: tiles with measurements, regions of high tiles
    OUT/<slide_id>/<run>.ome.tiff       pyramid of the raw maps on the slide's grid
    OUT/<slide_id>/<run>.csv, .parquet, .h5ad
    OUT/<slide_id>/export.json          what was made from what (written last)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mhim.artefacts import write_json
from mhim.batch import BatchResult, Outcome, run_batch
from mhim.config import validate
from mhim.exports.config import ExportConfig, Format
from mhim.exports.geojson import write_geojson
from mhim.exports.layers import SlideLayers, slide_layers
from mhim.exports.ome_tiff import write_ome_tiff
from mhim.exports.tables import write_anndata, write_csv, write_parquet
from mhim.maps import MapConfig, Study
from mhim.maps.stamp import is_current
from mhim.training.runs import Run

Writer = Callable[[Path, SlideLayers, ExportConfig], None]
WRITERS: dict[Format, tuple[str, Writer]] = {
    "geojson": (".geojson", write_geojson),
    "ome-tiff": (".ome.tiff", lambda path, layers, config: write_ome_tiff(path, layers, config.max_side_px)),
    "csv": (".csv", lambda path, layers, config: write_csv(path, layers)),
    "parquet": (".parquet", lambda path, layers, config: write_parquet(path, layers)),
    "anndata": (".h5ad", lambda path, layers, config: write_anndata(path, layers, config.with_features)),
}


def study_of(runs: Sequence[Run], config: ExportConfig) -> Study:
    """The study of runs with the inputs that the options name.

    Raises:
        CohortError: runs of different classes or slides.
    """
    given = {"cohort": config.cohort, "features": config.features, "fold": config.fold, "max_slides": None}
    return Study.of(runs, validate(MapConfig, given, "export"))


def chosen_slides(study: Study, slides: Sequence[str] | None) -> list[str]:
    """The named slides, or every one.

    Raises:
        CohortError: a named slide was not tested.
    """
    return study.chosen(validate(MapConfig, {"max_slides": None}, "export"), slides)


def export_maps(
    runs: Sequence[Run], out: Path, config: ExportConfig, slides: Sequence[str] | None = None, overwrite: bool = False
) -> BatchResult:
    """Write the maps of tested slides in open formats, each by the model of the fold that tested it.

    What was written already from the same runs, bags, slides and options is kept.

    Args:
        runs: complete runs that tested the same slides.
        out: folder to write.
        config: see :class:`ExportConfig`.
        slides: slides to export; None takes every one.
        overwrite: replace exports of another configuration or input.

    Raises:
        CohortError: runs of different classes or slides, or a slide that was not tested.
    """
    study = study_of(runs, config)

    def work(slide_id: str) -> Outcome:
        identity = {"config_fingerprint": config.content, "input_fingerprint": study.fingerprint(slide_id)}
        folder = out / slide_id
        if is_current(folder, "export.json", identity, "exports", overwrite):
            return Outcome.SKIPPED
        row = study.rows.get(slide_id)
        files, made = [], {}
        for source in study.runs:
            layers = slide_layers(source, slide_id, None if row is None else row.path, config.origin)
            for name in config.formats:
                suffix, write = WRITERS[name]
                write(folder / f"{source.slug}{suffix}", layers, config)
                files.append(f"{source.slug}{suffix}")
            made[source.slug] = layers.facts | {
                "origin": layers.frame.source,
                "corner_px0": list(layers.frame.corner_px0),
                "size_px0": list(layers.frame.size_px0),
                "mpp0": layers.frame.mpp0,
            }
        write_json(folder / "export.json", identity | {"tool": "mhim", "files": files, "runs": made})
        return Outcome.DONE

    return run_batch(chosen_slides(study, slides), work, name=lambda slide_id: slide_id, label="exporting")
