"""CLAM's segmentation and grid read plainly from their published description: OpenSlide, loops, point by point."""

from typing import Any

import cv2
import numpy as np
import openslide

from mhim.tissue.clam import PRESETS

CORNERS = ((-1, -1), (1, 1), (1, -1), (-1, 1))


def contours_of(file: openslide.OpenSlide, preset: str) -> list[tuple[Any, list[Any]]]:
    """Outer contours in level-0 pixels, each with the holes that are kept."""
    rules = PRESETS[preset]
    level = file.get_best_level_for_downsample(64) if file.level_count > 1 else 0
    size, size0 = file.level_dimensions[level], file.level_dimensions[0]
    scale = np.array([size0[0] / size[0], size0[1] / size[1]])
    hsv = cv2.cvtColor(np.array(file.read_region((0, 0), level, size)), cv2.COLOR_RGB2HSV)
    _, binary = cv2.threshold(cv2.medianBlur(hsv[:, :, 1], rules.mthresh), rules.sthresh, 255, cv2.THRESH_BINARY)
    binary = cv2.morphologyEx(binary, cv2.MORPH_CLOSE, np.ones((rules.close, rules.close), np.uint8))
    found, tree = cv2.findContours(binary, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    reference, kept = int(512**2 / (scale[0] * scale[1])), []
    for index, contour in enumerate(found):
        if tree[0][index][3] != -1:
            continue
        holes = [hole for hole, node in zip(found, tree[0], strict=True) if node[3] == index]
        area = cv2.contourArea(contour) - sum(cv2.contourArea(hole) for hole in holes)
        if area == 0 or area <= rules.a_t * reference:
            continue
        holes = sorted(holes, key=cv2.contourArea, reverse=True)[: rules.max_n_holes]
        holes = [hole for hole in holes if cv2.contourArea(hole) > rules.a_h * reference]
        kept.append(((contour * scale).astype(np.int32), [(hole * scale).astype(np.int32) for hole in holes]))
    return kept


def coordinates(
    file: openslide.OpenSlide, preset: str, size_px: int, step_px: int, level: int = 0
) -> list[tuple[int, int]]:
    """Corners of CLAM's tiles (four_pt, with padding) in CLAM's order."""
    factor, kept = int(file.level_downsamples[level]), []
    size, step = size_px * factor, step_px * factor
    for contour, holes in contours_of(file, preset):
        left, top, width, height = cv2.boundingRect(contour)
        for x in range(left, left + width, step):
            for y in range(top, top + height, step):
                if _inside(contour, x, y, size) and not any(_in_hole(hole, x, y, size) for hole in holes):
                    kept.append((x, y))
    return kept


def _inside(contour: Any, x: int, y: int, size: int) -> bool:
    shift = int(size // 2 * 0.5)
    points = ((float(x + size // 2 + shift * u), float(y + size // 2 + shift * v)) for u, v in CORNERS)
    return any(cv2.pointPolygonTest(contour, point, False) >= 0 for point in points)


def _in_hole(hole: Any, x: int, y: int, size: int) -> bool:
    return cv2.pointPolygonTest(hole, (x + size / 2, y + size / 2), False) > 0
