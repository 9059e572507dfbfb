import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
from PIL import Image

from mhim.artefacts import write_text
from mhim.cohort import read_cohort
from mhim.errors import ArtefactError
from mhim.synth import SynthConfig, make_cohort, missing
from mhim.synth.slide import MASK_DOWNSAMPLE

MPP = {"scanner-A": 0.5, "scanner-B": 0.46}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pixels(path: Path) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def test_bytes_do_not_depend_on_the_number_of_workers(tiny_cohort, tiny_config, tmp_path):
    make_cohort(tmp_path, tiny_config, workers=2)
    assert contents(tmp_path) == contents(tiny_cohort)


def test_cohort_table_reads_and_its_files_exist(tiny_cohort):
    cohort = read_cohort(tiny_cohort / "cohort.csv")
    assert cohort.classes == ("normal", "tumour")
    for row in cohort:
        assert row.path is not None
        assert row.path.is_file()
        assert (row.annotation is not None) == (row.label == "tumour")
        assert row.annotation is None or row.annotation.is_file()


def test_openslide_reads_scale_levels_and_size_of_both_scanners(tiny_cohort, tiny_config):
    sites = set()
    for row in read_cohort(tiny_cohort / "cohort.csv"):
        assert row.site is not None
        sites.add(row.site)
        with openslide.OpenSlide(row.path) as slide:
            mpp = MPP[row.site]
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(mpp, rel=1e-5)
            assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(mpp, rel=1e-5)
            assert slide.level_downsamples == (1, 4, 16)
            width, height = slide.dimensions
            assert width * mpp == pytest.approx(tiny_config.width_um, abs=8 * mpp)
            assert height * mpp == pytest.approx(tiny_config.height_um, abs=8 * mpp)
            coarse = np.asarray(slide.read_region((0, 0), 2, slide.level_dimensions[2]).convert("RGB"))
            fine = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
            assert coarse.mean() == pytest.approx(fine.mean(), abs=1)
    assert sites == set(MPP)


def test_masks_have_the_recorded_area_and_fractions_obey_the_specification(tiny_cohort, tiny_config):
    truth = pd.read_csv(tiny_cohort / "truth.csv", keep_default_na=False).set_index("slide_id")
    for row in read_cohort(tiny_cohort / "cohort.csv"):
        record = truth.loc[row.slide_id]
        assert record.tumour_fraction == pytest.approx(record.tumour_um2 / record.tissue_um2, abs=1e-6)
        share = record.tissue_um2 / (tiny_config.width_um * tiny_config.height_um)
        assert tiny_config.tissue_fraction_min - 0.03 < share < tiny_config.tissue_fraction_max + 0.03
        if row.annotation is None:
            assert record.tumour_um2 == 0
            continue
        mask = np.asarray(Image.open(row.annotation))
        with openslide.OpenSlide(row.path) as slide:
            assert mask.shape[::-1] == tuple(side // MASK_DOWNSAMPLE for side in slide.dimensions)
        cell_um2 = (MASK_DOWNSAMPLE * MPP[str(row.site)]) ** 2
        n_edge = int((np.diff(mask > 0, axis=0)).sum() + (np.diff(mask > 0, axis=1)).sum())
        assert abs((mask > 0).sum() * cell_um2 - record.tumour_um2) < 0.15 * n_edge * cell_um2
        kinds = {128: "subtle", 255: "salient"}
        assert {kinds[value] for value in np.unique(mask) if value} == set(record.kinds.split("+"))
        assert record.tumour_fraction >= 0.0025
        assert record.tumour_um2 >= tiny_config.focus_um2_min * 0.95


def test_tumour_is_painted_where_the_mask_says(tiny_cohort):
    dark_share = {0: [], 128: [], 255: []}
    for row in read_cohort(tiny_cohort / "cohort.csv"):
        if row.annotation is None:
            continue
        image = pixels(row.path)
        mask = np.kron(np.asarray(Image.open(row.annotation)), np.ones((8, 8), dtype=np.uint8))
        tissue = np.ptp(image, axis=2) > 20
        red = image[..., 0]
        dark = red < 0.68 * np.median(red[tissue])
        for value, shares in dark_share.items():
            inside = (mask == value) & tissue
            if inside.any():
                shares.append(dark[inside].mean())
    normal, subtle, salient = (np.mean(dark_share[value]) for value in (0, 128, 255))
    assert subtle > 1.2 * normal
    assert salient > 2 * normal
    assert salient > subtle


def test_scanners_differ_in_mean_colour(tiny_cohort):
    glass, tissue = {}, {}
    for row in read_cohort(tiny_cohort / "cohort.csv"):
        image = pixels(row.path)
        is_tissue = np.ptp(image, axis=2) > 20
        glass.setdefault(row.site, []).append(np.median(image[~is_tissue], axis=0))
        tissue.setdefault(row.site, []).append(image[is_tissue].mean(axis=0))
    for colours in (glass, tissue):
        difference = np.mean(colours["scanner-A"], axis=0) - np.mean(colours["scanner-B"], axis=0)
        assert np.abs(difference).max() > 5


def test_a_second_run_makes_only_what_is_missing(tiny_cohort, tiny_config):
    before = contents(tiny_cohort)
    (tiny_cohort / "slides" / "synth-002.tiff").unlink()
    (tiny_cohort / "truth" / "synth-004.json").unlink()
    assert [plan.slide_id for plan in missing(tiny_cohort, tiny_config)] == ["synth-002", "synth-004"]
    result = make_cohort(tiny_cohort, tiny_config, workers=0)
    assert result.done == ["synth-002", "synth-004"]
    assert len(result.skipped) == 4
    assert contents(tiny_cohort) == before


def test_another_configuration_is_refused_then_replaced(tmp_path):
    small = SynthConfig(n_slides=3, n_cases=3, width_um=500, height_um=500, mpp_a=2, mpp_b=1.84, focus_um2_min=1500)
    make_cohort(tmp_path, small, workers=0)
    other = small.model_copy(update={"n_slides": 2, "n_cases": 2, "seed": 1})
    with pytest.raises(ArtefactError, match=r"synth\.json: a cohort of another configuration; .*--overwrite"):
        make_cohort(tmp_path, other, workers=0)
    make_cohort(tmp_path, other, workers=0, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "slides").iterdir()) == ["synth-001.tiff", "synth-002.tiff"]
    assert len(read_cohort(tmp_path / "cohort.csv")) == 2


def test_a_cohort_table_of_other_origin_is_not_replaced(tmp_path):
    write_text(tmp_path / "cohort.csv", "slide_id,case_id,label\n")
    with pytest.raises(ArtefactError, match=r"cohort\.csv: a cohort that mhim synth did not make"):
        make_cohort(tmp_path, SynthConfig(), workers=0)


def start(out: Path, config: SynthConfig, workers: int) -> subprocess.Popen:
    """``mhim synth`` in a process group of its own, once its first slide is whole."""
    settings = [f"--set={key}={value}" for key, value in config.model_dump().items()]
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from mhim.cli import main; main()"
    command = [sys.executable, "-c", code, "synth", "-o", str(out), f"--workers={workers}", *settings]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("truth/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("workers", "stop"), [(0, signal.SIGKILL), (2, signal.SIGINT)])
def test_a_stopped_run_leaves_nothing_that_reads_complete_and_goes_on(
    tmp_path, tiny_cohort, tiny_config, workers, stop
):
    process = start(tmp_path, tiny_config, workers)
    os.killpg(process.pid, stop)
    _, log = process.communicate(timeout=60)
    if stop is signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in log
    assert not (tmp_path / "cohort.csv").exists()
    assert not (tmp_path / "truth.csv").exists()
    for path in tmp_path.glob("slides/[!.]*"):
        assert path.read_bytes() == (tiny_cohort / "slides" / path.name).read_bytes()
    make_cohort(tmp_path, tiny_config, workers=0)
    whole = {name: data for name, data in contents(tmp_path).items() if not name.endswith(".tmp")}
    assert whole == contents(tiny_cohort)
