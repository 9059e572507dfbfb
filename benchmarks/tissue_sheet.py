"""A contact sheet of real pictures: outline of the tissue in green, what was left out as ink or dark marks in orange.

    python benchmarks/tissue_sheet.py docs/images/tissue.jpg [--shared ../shared]
    python benchmarks/tissue_sheet.py docs/images/inks.jpg --inks     # one of them under the inks of the tests

Thumbnails without a scale are taken at 8, 16 or 0.5 um per px, which is an assumption; so is 0.5 for the TCGA sample.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mhim.slides import Slide, open_slide
from mhim.slides.array import ArraySlide
from mhim.tissue import segment_tissue

THUMBNAILS = {
    "histoprep_slide.jpeg": 8.0,
    "histoprep_tma_spots.jpeg": 8.0,
    "histoqc_coverslip_edge.png": 16.0,
    "histoqc_template1.png": 0.5,
}
SLIDES = (
    "CMU-1-Small-Region-dicom",
    "CMU-1-Small-Region.svs",
    "bone_jpeg.dcm",
    "bone_jpeg2000.dcm",
    "camelyon16_overview_multiframe.dcm",
    "tcga-cr-7395-01a-01-ts1.svs",
)
WIDTH, COLUMNS = 330, 5


def pictures(shared: Path) -> Iterator[tuple[str, Slide]]:
    """Name and slide of every sample."""
    for name, mpp in THUMBNAILS.items():
        pixels = np.array(Image.open(shared / "data" / "tissue_thumbnails" / name).convert("RGB"))
        yield name.split(".")[0], ArraySlide(pixels, mpp)
    for name in SLIDES:
        yield name.split(".")[0], open_slide(shared / "data" / "wsi_samples" / name, mpp0=0.5)


def inked(shared: Path) -> Iterator[tuple[str, Slide]]:
    """One real picture under a loop of each ink that the tests draw."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from test_tissue_ink import AMBER, INKS, marked

    name = "histoqc_coverslip_edge.png"
    pixels = np.array(Image.open(shared / "data" / "tissue_thumbnails" / name).convert("RGB"))
    turn = np.linspace(0, 6, 60)
    loop = np.stack([330 + 130 * np.cos(turn), 200 + 150 * np.sin(turn)], axis=1)
    for ink in [*INKS, *AMBER]:
        yield ink, ArraySlide(marked(pixels, ink, loop, 22)[0], THUMBNAILS[name])


def overlay(slide: Slide) -> tuple[NDArray[np.uint8], float]:
    """The slide with its tissue drawn in, (h, w, 3), and the share of tissue."""
    mask, picture = segment_tissue(slide), slide.thumbnail(700)
    height, width = picture.shape[:2]

    def to_picture(cells: NDArray[np.bool_]) -> NDArray[np.uint8]:
        scale = np.array(mask.px0_per_cell) * (width / slide.size_px0[0], height / slide.size_px0[1])
        size = np.rint(np.array(cells.shape[::-1]) * scale).astype(int).tolist()
        large = np.asarray(cv2.resize(cells.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST))
        return np.pad(large, ((0, 2), (0, 2)))[:height, :width].astype(np.uint8)

    if mask.rejected is not None:
        rejected = to_picture(mask.rejected) > 0
        picture[rejected] = 0.6 * picture[rejected] + 0.4 * np.array([255, 140, 0])
    rings, _ = cv2.findContours(to_picture(mask.cells), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, rings, -1, (0, 160, 60), 2)
    return picture, mask.fraction


def main() -> None:
    """Draw every sample and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--inks", action="store_true", help="strokes of ink on one picture instead")
    options = parser.parse_args()
    samples = inked if options.inks else pictures
    found = [(name, *overlay(slide)) for name, slide in samples(options.shared)]
    height = 230 if options.inks else 300
    sheet = Image.new("RGB", (COLUMNS * WIDTH, -(-len(found) // COLUMNS) * height), "white")
    for index, (name, picture, fraction) in enumerate(found):
        left, top = index % COLUMNS * WIDTH, index // COLUMNS * height
        small = Image.fromarray(picture)
        small.thumbnail((WIDTH - 8, height - 24))
        sheet.paste(small, (left + (WIDTH - small.width) // 2, top + 20))
        ImageDraw.Draw(sheet).text((left + 4, top + 4), f"{name}: {fraction:.0%}", fill="black")
    sheet.save(options.out, quality=82)


if __name__ == "__main__":
    main()
