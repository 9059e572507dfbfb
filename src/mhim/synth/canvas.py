"""The stain planes of one slide at a scanner's scale, and the strokes that draw on them."""

from __future__ import annotations

import cv2
import numpy as np

from mhim.synth.geometry import Region
from mhim.synth.nuclei import COUNTS_PER_UNIT, N_ANGLES

_SUBPIXEL_BITS = 4


class Canvas:
    """Stain planes and region map of a slide.

    Attributes:
        mpp: micrometres per pixel.
        haematoxylin, eosin: uint8 (h, w), stain in counts, ``COUNTS_PER_UNIT`` of which are one optical density.
        regions: uint8 (h, w), the ``Region`` of every pixel.
    """

    def __init__(self, size_px: tuple[int, int], mpp: float) -> None:
        self.mpp = mpp
        self.haematoxylin, self.eosin, self.regions = (np.zeros(size_px[::-1], dtype=np.uint8) for _ in range(3))

    def region_at(self, xy_um: np.ndarray) -> np.ndarray:
        """Region under each point, uint8 (point,); ``Region.GLASS`` off the slide."""
        height, width = self.regions.shape
        column, row = np.floor(xy_um / self.mpp).astype(np.int64).T
        is_on = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        found = self.regions[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
        return np.where(is_on, found, np.uint8(Region.GLASS))

    def mark(self, outline_um: np.ndarray, region: Region) -> None:
        """Set the region inside an outline; glass stays glass."""
        box = self._box(outline_um, 2)
        inside = self._raster(outline_um, box, smooth=False)
        view = self.regions[box]
        view[(inside > 0) & (view != Region.GLASS)] = region

    def fill(
        self,
        outline_um: np.ndarray,
        *,
        haematoxylin: float,
        eosin: float,
        soft_um: float,
        grain: np.ndarray | None = None,
    ) -> None:
        """Replace the stain inside an outline.

        Args:
            outline_um: float (point, 2).
            haematoxylin: stain inside [optical density].
            eosin: the same for eosin.
            soft_um: standard deviation of the edge.
            grain: mottle around 128, uint8 (h, w) at the canvas's scale, that multiplies the stain; repeats.
        """
        box = self._box(outline_um, int(3 * soft_um / self.mpp) + 2)
        weight = self._raster(outline_um, box, smooth=True)
        weight = cv2.GaussianBlur(weight, (0, 0), max(soft_um / self.mpp, 0.3)).astype(np.float32) / np.float32(255)
        weight *= self.regions[box] != Region.GLASS
        gain = np.float32(1) if grain is None else window(grain, box).astype(np.float32) / np.float32(128)
        for plane, stain in ((self.haematoxylin, haematoxylin), (self.eosin, eosin)):
            view = plane[box].astype(np.float32)
            view += (np.float32(stain * COUNTS_PER_UNIT) * gain - view) * weight
            plane[box] = np.clip(view, 0, 255).astype(np.uint8)

    def darken(self, line_um: np.ndarray, width_um: float, gain: float) -> None:
        """Multiply both stains in a band along a line, as where tissue lies double."""
        box = self._box(line_um, int(1.5 * width_um / self.mpp) + 2)
        band = np.zeros(self.regions[box].shape, dtype=np.uint8)
        points = self._fixed(line_um, box)
        cv2.polylines(band, [points], False, 255, max(int(width_um / self.mpp), 1), cv2.LINE_AA, _SUBPIXEL_BITS)
        weight = cv2.GaussianBlur(band, (0, 0), 3.0 / self.mpp).astype(np.float32) / np.float32(255)
        for plane in (self.haematoxylin, self.eosin):
            plane[box] = np.minimum(plane[box] * (1 + (gain - 1) * weight), 255).astype(np.uint8)

    def stamp(
        self,
        plane: np.ndarray,
        stamps: list[list[np.ndarray]],
        xy_um: np.ndarray,
        angle: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        """Press one of the stamps onto a plane at each point, keeping the darker value.

        Args:
            plane: ``haematoxylin`` or ``eosin``.
            stamps: by direction and variant.
            xy_um: float (point, 2), centres.
            angle: float (point,), directions [rad].
            rng: picks the variants.
        """
        height, width = plane.shape
        turns = np.round(angle / np.pi * N_ANGLES).astype(np.int64) % N_ANGLES
        variants = rng.integers(0, len(stamps[0]), len(xy_um))
        centres_px = np.floor(xy_um / self.mpp).astype(np.int64)
        for (x, y), turn, variant in zip(centres_px.tolist(), turns.tolist(), variants.tolist(), strict=True):
            stamp = stamps[turn][variant]
            half = stamp.shape[0] // 2
            left, top, right, bottom = x - half, y - half, x + half + 1, y + half + 1
            if left < 0 or top < 0 or right > width or bottom > height:
                continue
            view = plane[top:bottom, left:right]
            np.maximum(view, stamp, out=view)

    def _box(self, outline_um: np.ndarray, margin_px: int) -> tuple[slice, slice]:
        """Rows and columns around an outline, within the canvas."""
        height, width = self.regions.shape
        low = np.floor(outline_um.min(axis=0) / self.mpp).astype(int) - margin_px
        high = np.ceil(outline_um.max(axis=0) / self.mpp).astype(int) + margin_px
        left, top = np.clip(low, 0, (width - 1, height - 1))
        right, bottom = np.clip(high, (left + 1, top + 1), (width, height))
        return slice(int(top), int(bottom)), slice(int(left), int(right))

    def _fixed(self, outline_um: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
        """Points as OpenCV wants them: fixed point, relative to the box, pixel centres at whole numbers."""
        xy_px = outline_um / self.mpp - (box[1].start, box[0].start) - 0.5
        return np.round(xy_px * (1 << _SUBPIXEL_BITS)).astype(np.int32)

    def _raster(self, outline_um: np.ndarray, box: tuple[slice, slice], smooth: bool) -> np.ndarray:
        """The inside of an outline as 255, uint8 (h, w) of the box."""
        raster = np.zeros(self.regions[box].shape, dtype=np.uint8)
        line = cv2.LINE_AA if smooth else cv2.LINE_8
        cv2.fillPoly(raster, [self._fixed(outline_um, box)], 255, line, _SUBPIXEL_BITS)
        return raster


def window(field: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
    """The part of an endlessly repeated field that lies under a box."""
    rows, columns = (np.arange(part.start, part.stop) % side for part, side in zip(box, field.shape, strict=True))
    return field[rows[:, None], columns[None, :]]
