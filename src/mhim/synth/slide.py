"""One synthetic slide: image, exact tumour mask, and the record that marks it complete."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mhim.artefacts import atomic_path, read_json, write_json
from mhim.config import fingerprint
from mhim.errors import ArtefactError
from mhim.synth.config import SynthConfig
from mhim.synth.geometry import Region
from mhim.synth.layout import lay_out
from mhim.synth.optics import SCANNERS, expose
from mhim.synth.paint import paint
from mhim.synth.plan import SlidePlan
from mhim.synth.texture import make_textures
from mhim.synth.tiff import write_slide

GENERATOR = 1
"""Raised whenever the same configuration would give other pictures."""
MASK_DOWNSAMPLE = 8
"""Level-0 pixels per pixel of a mask, along a side."""
MASK_SUBTLE, MASK_SALIENT = 128, 255


@dataclass(frozen=True)
class SlideFiles:
    """Where the files of a slide are."""

    slide: Path
    annotation: Path
    record: Path


def files_of(out: Path, slide_id: str) -> SlideFiles:
    """Where the files of a slide are in a cohort folder."""
    return SlideFiles(
        slide=out / "slides" / f"{slide_id}.tiff",
        annotation=out / "annotations" / f"{slide_id}.png",
        record=out / "truth" / f"{slide_id}.json",
    )


def identity(config: SynthConfig) -> str:
    """Fingerprint of everything that decides what the slides of a cohort look like."""
    return fingerprint({"generator": GENERATOR, "config": config.model_dump(mode="json")})


def is_complete(out: Path, config: SynthConfig, plan: SlidePlan) -> bool:
    """Whether the slide is there, whole, and made by this configuration."""
    files = files_of(out, plan.slide_id)
    wanted = [files.slide, *([files.annotation] if plan.kinds else [])]
    try:
        record = read_json(files.record)
    except ArtefactError:
        return False
    return record.get("made_by") == identity(config) and all(path.is_file() for path in wanted)


def make_slide(out: Path, config: SynthConfig, plan: SlidePlan) -> None:
    """Render one slide and write its files; the record comes last, so that only a whole slide has one."""
    scanner = SCANNERS[plan.scanner]
    mpp = {"A": config.mpp_a, "B": config.mpp_b}[plan.scanner]
    textures = make_textures(config.seed)
    layout = lay_out(config, plan)
    canvas = paint(layout, textures, config.seed, mpp, np.random.default_rng([plan.seed, 2]))
    image = expose(canvas, scanner, layout.style, textures.noise, np.random.default_rng([plan.seed, 3]))
    files = files_of(out, plan.slide_id)
    description = f"synthetic slide {plan.slide_id}, {scanner.name}, made by mhim synth"
    write_slide(files.slide, image, mpp, jpeg_quality=config.jpeg_quality, description=description)
    if plan.kinds:
        with atomic_path(files.annotation) as temporary:
            Image.fromarray(tumour_mask(canvas.regions)).save(temporary, format="PNG")
    write_json(files.record, {"made_by": identity(config), **_truth(canvas.regions, mpp, plan)})


def tumour_mask(regions: np.ndarray) -> np.ndarray:
    """Mask of a region map, uint8 at 1 / ``MASK_DOWNSAMPLE`` of its size: 0, ``MASK_SUBTLE`` or ``MASK_SALIENT``.

    A mask pixel is inside when at least half of the pixels under it are tumour; of two kinds the larger part wins.
    """
    size = (regions.shape[1] // MASK_DOWNSAMPLE, regions.shape[0] // MASK_DOWNSAMPLE)
    subtle, salient = (
        cv2.resize((regions == region).astype(np.float32), size, interpolation=cv2.INTER_AREA)
        for region in (Region.SUBTLE, Region.SALIENT)
    )
    kind = np.where(salient >= subtle, MASK_SALIENT, MASK_SUBTLE)
    return np.where(subtle + salient >= 0.5, kind, 0).astype(np.uint8)


def _truth(regions: np.ndarray, mpp: float, plan: SlidePlan) -> dict[str, Any]:
    """Areas counted on the full-size region map, and the plan they came from."""
    counts = np.bincount(regions.ravel(), minlength=max(Region) + 1)
    tissue = int(counts[Region.STROMA :].sum())
    tumour = int(counts[Region.SUBTLE] + counts[Region.SALIENT])
    return {
        "slide_id": plan.slide_id,
        "tissue_um2": round(tissue * mpp**2, 2),
        "tumour_um2": round(tumour * mpp**2, 2),
        "tumour_fraction": round(tumour / tissue, 6),
        "kinds": "+".join(plan.kinds),
        "scanner": SCANNERS[plan.scanner].name,
        "seed": plan.seed,
    }
