"""Ink kept as tissue, and tissue taken for ink: strokes drawn on real pictures, and real tissue in other stains.

    python benchmarks/ink_strokes.py --shared ../shared

On four real pictures (16 to 29 um per px) strokes of 300 and 800 um are drawn over glass only, and across tissue, in
22 inks, at full, half and a quarter of their density, translucent and uneven by a tenth. One table shows the share of
the stroke that counts as tissue, on glass and over tissue, and the most that is lost of the other tissue. For the other
the tissue is unmixed into haematoxylin and eosin and coloured anew (DAB, a bare counterstain, twice the haematoxylin,
black-brown pigment, lakes of blood, a third of all stain): the share of tissue that is lost where ink is left out.
Deterministic; takes some minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mhim.slides import open_slide
from mhim.slides.array import ArraySlide
from mhim.tissue import TissueConfig, segment_tissue

Rgb = NDArray[np.uint8]
INKS = {
    "blue": (35, 60, 165),
    "dark blue": (25, 30, 95),
    "green": (25, 120, 70),
    "light green": (120, 200, 130),
    "teal": (20, 120, 135),
    "cyan": (60, 165, 205),
    "red": (205, 35, 50),
    "crimson": (165, 20, 60),
    "rose": (205, 35, 95),
    "orange": (235, 120, 40),
    "black": (30, 28, 32),
    "violet": (95, 35, 140),
    "dark purple": (60, 25, 90),
    "purple": (85, 40, 125),
    "brown": (120, 75, 40),
    "dark brown": (70, 40, 25),
    "light brown": (170, 120, 80),
    "yellow": (240, 220, 60),
    "lemon": (235, 240, 80),
    "ochre": (200, 150, 50),
    "pale violet": (170, 130, 210),
    "pale pink": (240, 170, 190),
}
DENSITIES, WIDTHS_UM = (1.0, 0.5, 0.25), (300, 800)
HAEMATOXYLIN, EOSIN, DAB = (np.array(dye) for dye in ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.268, 0.57, 0.776)))
COUNTERSTAIN, PIGMENT, BLOOD = np.array([0.6, 0.5, 0.3]), np.array([0.55, 0.75, 0.95]), (185, 65, 75)


def pictures(shared: Path) -> Iterator[tuple[str, Rgb, float]]:
    """Name, pixels and um per px; thumbnails without a scale are taken at 16, which is an assumption."""
    thumbnails, samples = shared / "data" / "tissue_thumbnails", shared / "data" / "wsi_samples"
    yield "breast", np.array(Image.open(thumbnails / "histoqc_coverslip_edge.png").convert("RGB")), 16.0
    yield "array", np.array(Image.open(thumbnails / "histoprep_tma_spots.jpeg").convert("RGB").reduce(2)), 16.0
    with open_slide(samples / "camelyon16_overview_multiframe.dcm") as slide:
        yield "lymph node", slide.read((0, 0), slide.size_px0, slide.mpp0), slide.mpp0
    with open_slide(samples / "tcga-cr-7395-01a-01-ts1.svs", mpp0=0.5) as slide:
        yield (
            "head and neck",
            np.pad(slide.thumbnail(1000), ((150,) * 2, (150,) * 2, (0, 0)), constant_values=243),
            16.0,
        )


def density(rgb: Any) -> NDArray[np.float64]:
    """Optical density of levels."""
    return -np.log((np.asarray(rgb, np.float64) + 1) / 256)


def levels(density: NDArray[np.float64]) -> Rgb:
    """Levels of an optical density."""
    return (256 * np.exp(-density) - 1).clip(0, 255).astype(np.uint8)


def field(shape: tuple[int, ...], px: float, seed: int) -> NDArray[np.float32]:
    """Smooth noise of deviation 1 with structure of ``px``."""
    noise = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    smooth = np.asarray(cv2.GaussianBlur(noise, (0, 0), px), np.float32)
    return smooth / smooth.std()


def restained(rgb: Rgb) -> Iterator[tuple[str, Rgb]]:
    """The tissue of a picture in other stains."""
    darkest, shape = rgb.min(axis=2), rgb.shape[:2]
    glass = np.median(rgb[darkest >= np.percentile(darkest, 90) - 3], axis=0)
    found = np.maximum(density(rgb) - density(glass), 0)
    dyes = np.maximum(found @ np.linalg.pinv(np.stack([HAEMATOXYLIN, EOSIN])), 0)
    h, e = dyes[..., 0, None], dyes[..., 1, None]
    patches = (field(shape, 25, 1) > 0.3)[..., None]
    grains = ((field(shape, 12, 2) > 1)[..., None] & (h + e > 0.15)) * (0.8 + 0.5 * field(shape, 1.2, 3)).clip(0)[
        ..., None
    ]
    lakes = ((field(shape, 14, 4) > 1.2) & (cv2.blur((h + e)[..., 0], (9, 9)) > 0.12))[..., None]
    blood = (1 + 0.12 * field(shape, 2, 5))[..., None] * density(BLOOD)
    yield "H&E as it is", rgb
    yield "DAB everywhere", levels(0.5 * h * COUNTERSTAIN + (1.2 * e + 0.4 * h) * DAB)
    yield "DAB, dense", levels(0.5 * h * COUNTERSTAIN + (2.5 * e + 1.2 * h) * DAB)
    yield "DAB in patches", levels(0.5 * h * COUNTERSTAIN + (1.8 * e + 0.5 * h) * patches * DAB)
    yield "DAB, weak", levels(0.6 * h * COUNTERSTAIN + 0.35 * e * DAB)
    yield "counterstain only", levels(0.8 * h * COUNTERSTAIN)
    yield "twice the haematoxylin", levels(2 * h * HAEMATOXYLIN + e * EOSIN)
    yield "pigment", levels(found + grains * PIGMENT)
    yield "blood", levels(np.where(lakes, blood, found))
    yield "a third of the stain", levels(0.35 * found)


def drawn(
    rgb: Rgb, ink: str, share: float, points: list[tuple[float, float]], px: int
) -> tuple[Rgb, NDArray[np.bool_]]:
    """A picture under a stroke, and where the stroke is."""
    stroke = np.zeros(rgb.shape[:2], np.uint8)
    cv2.polylines(stroke, [np.array(points, np.int32)], False, 255, px, cv2.LINE_AA)
    soft = np.asarray(cv2.GaussianBlur(stroke.astype(np.float32) / 255, (0, 0), 1))
    film = soft * (1 + 0.1 * field(stroke.shape, 4, 0) + 0.05 * field(stroke.shape, 1.2, 9))
    return levels(density(rgb) + share * film[..., None] * density(INKS[ink])), stroke > 128


def strokes(height: int, width: int) -> list[list[tuple[float, float]]]:
    """Along the edges, and across the picture."""
    edge = [(0.05, 0.06), (0.5, 0.1), (0.93, 0.05), (0.95, 0.9)]
    across = [(0.08, 0.2), (0.4, 0.45), (0.7, 0.5), (0.92, 0.75), (0.5, 0.93)]
    return [[(x * width, y * height) for x, y in line] for line in (edge, across)]


def tissue(rgb: Rgb, mpp: float, reject_ink: bool = True) -> NDArray[np.bool_]:
    """The tissue of a picture."""
    return segment_tissue(ArraySlide(rgb, mpp), TissueConfig(mpp=mpp, reject_ink=reject_ink)).cells


def share(part: NDArray[np.bool_], of: NDArray[np.bool_]) -> float:
    """Share of ``of`` that is ``part``; nothing where it is too small to say."""
    return float(part[of].mean()) if of.sum() > 50 else float("nan")


def kept_and_lost(rgb: Rgb, mpp: float, ink: str, part: float) -> list[tuple[float, float, float]]:
    """For every stroke: kept on glass, kept over tissue, other tissue lost."""
    clean = tissue(rgb, mpp)
    near = np.asarray(cv2.dilate(clean.astype(np.uint8), np.ones((7, 7), np.uint8))) > 0
    found = []
    for width_um in WIDTHS_UM:
        for points in strokes(*clean.shape):
            marked, stroke = drawn(rgb, ink, part, points, max(3, round(width_um / mpp)))
            cells = tissue(marked, mpp)
            away = clean & (np.asarray(cv2.dilate(stroke.astype(np.uint8), np.ones((9, 9), np.uint8))) == 0)
            found.append((share(cells, stroke & ~near), share(cells, stroke & clean), share(~cells, away)))
    return found


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--inks", nargs="*", default=list(INKS), choices=list(INKS))
    options = parser.parse_args()
    cv2.setNumThreads(1)
    found = list(pictures(options.shared))
    print("| tissue | " + " | ".join(name for name, _, _ in found) + " |\n|---" + "|---" * len(found) + "|", flush=True)
    stains = [dict(restained(rgb)) for _, rgb, _ in found]
    for stain in stains[0]:
        lost = []
        for (_, _, mpp), colours in zip(found, stains, strict=True):
            everything = tissue(colours[stain], mpp, reject_ink=False)
            lost.append(share(~tissue(colours[stain], mpp), everything))
        print(f"| {stain} | " + " | ".join(f"{part:.3f}" for part in lost) + " |", flush=True)
    parts = " | ".join(f"{where}, {part:g}" for where in ("glass", "tissue") for part in DENSITIES)
    print(f"\n| ink | {parts} | other tissue lost |\n|---" + "|---" * 7 + "|", flush=True)
    for ink in options.inks:
        rows = [[row for _, rgb, mpp in found for row in kept_and_lost(rgb, mpp, ink, part)] for part in DENSITIES]
        means = [np.nanmean([row[place] for row in group]) for place in (0, 1) for group in rows]
        most = np.nanmax([row[2] for group in rows for row in group])
        print(f"| {ink} | " + " | ".join(f"{mean:.2f}" for mean in means) + f" | {most:.3f} |", flush=True)


if __name__ == "__main__":
    main()
