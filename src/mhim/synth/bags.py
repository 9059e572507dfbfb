"""One simulated slide: where its tiles and its tumour are, and the features of each tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr

from mhim.synth.camelyon_config import TILE_PX0, CamelyonConfig
from mhim.synth.feature_pool import FeaturePool
from mhim.synth.outlines import SlideMeta, polygon_area, tumour_coverage

NORMAL, SALIENT, SUBTLE = 0, 1, 2
"""Kinds of an instance."""
TISSUE_SHARE = 0.35
TILES_SIGMA = 0.5

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """Tiles of a slide, row by row.

    Attributes:
        cells: (N, 2) int64, column and row of each tile in its lattice.
        xy_px0: (N, 2) int64, top-left corner, level-0 pixels.
        coverage: (N,) share of the tile that is tumour.
        kind: (N,) int8, ``NORMAL``, ``SALIENT`` or ``SUBTLE``.
        shape: rows and columns of the lattice.
    """

    cells: NDArray[np.int64]
    xy_px0: NDArray[np.int64]
    coverage: Array
    kind: NDArray[np.int8]
    shape: tuple[int, int]


def generator(config: CamelyonConfig, name: str, purpose: str) -> np.random.Generator:
    """Random numbers of one purpose of one slide, the same in whatever order slides are made."""
    return np.random.default_rng([config.seed, crc32(name.encode()), crc32(purpose.encode())])


def with_blob(meta: SlideMeta, fraction: float, config: CamelyonConfig) -> SlideMeta:
    """A tumour slide without outlines, given an ellipse of ``fraction`` of ``tiles_mean`` real tiles."""
    rng = generator(config, meta.slide_id, "blob")
    area = max(fraction, 1e-4) * config.tiles_mean * TILE_PX0**2
    axis = np.sqrt(area / np.pi) * np.array([1.3, 1 / 1.3])
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    ellipse = np.stack([np.cos(angle), np.sin(angle)], axis=1) * axis
    turn = rng.uniform(0, np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    outline = ellipse @ rotation + rng.uniform(30000, 60000, size=2)
    return SlideMeta(meta.slide_id, meta.label, meta.site, meta.part, fraction, (outline,), ())


def lay_out(meta: SlideMeta, config: CamelyonConfig) -> Layout:
    """Lay tissue and tumour of a slide over the lattice.

    The number of tiles makes the tumour of the outlines the slide's known share of the tissue where that
    stays within ``tiles_min`` and ``tiles_max``; other slides draw it (log-normal). Tissue is what
    is most covered by tumour, every tumour tile, and the highest values of a smooth field that falls off from the
    middle.
    """
    rng = generator(config, meta.slide_id, "layout")
    pitch = config.pitch_px0
    count = _tile_count(meta, config, rng)
    outlines = [*meta.positive, *meta.negative]
    low, high = _extent(outlines, rng)
    margin = np.maximum((np.sqrt(count / TISSUE_SHARE) - (high - low) / pitch) / 2, 2) * pitch
    shift = rng.uniform(-0.3, 0.3, size=2) * (margin - 2 * pitch)
    origin = np.maximum((low - margin + shift) // pitch, 0).astype(np.int64) * pitch
    columns, rows = (int(n) for n in np.ceil((high + margin + shift - origin) / pitch))
    shape = (rows, columns)
    drawn = np.zeros(shape)
    touched = np.zeros(shape, dtype=bool)
    for outline in outlines:
        corner = np.floor((outline - origin) / pitch).astype(int)
        touched[corner[:, 1].clip(0, rows - 1), corner[:, 0].clip(0, columns - 1)] = True
    if meta.label:
        drawn = tumour_coverage(meta, origin, pitch, shape)
    needed = drawn >= min(config.coverage_min, float(drawn.max())) if meta.label else np.zeros(shape, dtype=bool)
    tissue = _tissue(drawn, touched, max(count, int(needed.sum())), rng)
    row, column = np.nonzero(tissue)
    cells = np.stack([column, row], axis=1).astype(np.int64)
    coverage = drawn[row, column]
    kind = _kinds(meta, cells, coverage, shape, config)
    return Layout(cells, origin + cells * pitch, coverage, kind, shape)


def _extent(outlines: Sequence[Array], rng: np.random.Generator) -> tuple[Array, Array]:
    if not outlines:
        middle = rng.uniform(40000, 60000, size=2)
        return middle, middle
    points = np.concatenate(outlines)
    return points.min(axis=0), points.max(axis=0)


def _tile_count(meta: SlideMeta, config: CamelyonConfig, rng: np.random.Generator) -> int:
    """Tiles of a slide in its own lattice."""
    drawn = config.tiles_mean * np.exp(TILES_SIGMA * rng.standard_normal() - TILES_SIGMA**2 / 2)
    tumour = sum(map(polygon_area, meta.positive)) - (sum(map(polygon_area, meta.negative)) if meta.positive else 0)
    if meta.label and meta.tumour_fraction and meta.tumour_fraction >= 0.001:
        drawn = max(tumour, 0) / TILE_PX0**2 / meta.tumour_fraction
    real = np.clip(drawn, config.tiles_min, config.tiles_max)
    return max(8, round(float(real) * (TILE_PX0 / config.pitch_px0) ** 2))


def _tissue(drawn: Array, touched: NDArray[np.bool_], count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """``count`` tiles: the most covered by tumour, those where an outline passes, the best of a smooth field."""
    rows, columns = drawn.shape
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    side = max(rows, columns)
    value = smooth_field(drawn.shape, 0.06 * side, rng) + 2 * (1 - x**2 - y**2)
    near = gaussian_filter((touched | (drawn > 0)).astype(float), 0.02 * side)
    value += 4 * near / max(float(near.max()), 1e-12)
    value[touched] += 1e3
    value[drawn > 0] = 1e6 * (1 + drawn[drawn > 0])
    tissue = np.zeros(drawn.size, dtype=bool)
    tissue[np.argsort(-value, axis=None, kind="stable")[:count]] = True
    return tissue.reshape(drawn.shape)


def _kinds(
    meta: SlideMeta, cells: NDArray[np.int64], coverage: Array, shape: tuple[int, int], config: CamelyonConfig
) -> NDArray[np.int8]:
    """Kind of each tile: covered enough, or the slide's best; subtle where a smooth field is highest."""
    kind = np.zeros(len(coverage), dtype=np.int8)
    if not meta.label:
        return kind
    rng = generator(config, meta.slide_id, "kinds")
    share = 1.0 if rng.random() < config.subtle_only_fraction else config.subtle_fraction
    tumour = coverage >= min(config.coverage_min, float(coverage.max()))
    kind[tumour] = SALIENT
    field = smooth_field(shape, config.correlation_tiles, rng)[cells[:, 1], cells[:, 0]]
    where = np.flatnonzero(tumour)
    subtle = int(np.floor(share * len(where) + rng.random()))
    kind[where[np.argsort(-field[where], kind="stable")[:subtle]]] = SUBTLE
    return kind


def smooth_field(shape: tuple[int, int], length: float, rng: np.random.Generator) -> Array:
    """Gaussian field of mean 0 and variance 1 over a lattice: white noise smoothed by ``length`` cells."""
    pad = int(np.ceil(3 * length))
    rows, columns = shape
    field = gaussian_filter(rng.standard_normal((rows + 2 * pad, columns + 2 * pad)), length, truncate=3)
    kernel = np.zeros(2 * pad + 1)
    kernel[pad] = 1
    weight = float((gaussian_filter(kernel, length, truncate=3) ** 2).sum())
    return field[pad : pad + rows, pad : pad + columns] / weight


def make_features(
    meta: SlideMeta, layout: Layout, pool: FeaturePool, groups: NDArray[np.int64], config: CamelyonConfig
) -> Array:
    """Features of each tile.

    A tile is a patch of the slide's groups, less its group's normal mean (see :class:`FeaturePool`); tumour
    tiles by their kind; plus noise, times the slide's gain, plus the slide's and the hospital's shift.

    Args:
        meta: the slide.
        layout: its N tiles.
        pool: patches, (P, D).
        groups: the pool's groups that this slide draws from.
        config: effects.

    Returns:
        (N, D) float64.
    """
    rng = generator(config, meta.slide_id, "features")
    directions = rng.standard_normal((2, pool.features.shape[1])) * pool.spread**2
    latents = [_latent(layout, config, rng) for _ in range(2)]
    of_slide = np.isin(pool.group, groups)
    normal = np.flatnonzero(of_slide & (pool.label == 0))
    x = pool.features[_pick(pool.features[normal] @ directions.T, latents, normal)]
    for kind in (SALIENT, SUBTLE):
        tiles = np.flatnonzero(layout.kind == kind)
        if not len(tiles):
            continue
        rows = _tumour_rows(pool, groups, config, kind)
        picked = _pick(pool.features[rows] @ directions.T, [latent[tiles] for latent in latents], rows)
        tumour = pool.features[picked] + config.contrast * pool.difference
        mix = config.subtle_mix if kind == SUBTLE else 0.0
        x[tiles] = (1 - mix) * tumour + mix * x[tiles]
    x += config.noise * pool.spread * rng.standard_normal(x.shape)
    gain = np.exp(config.slide_gain * rng.standard_normal(x.shape[1]))
    return x * gain + config.slide_effect * between_groups(pool, rng) + _site_shift(meta.site, pool, config)


def _latent(layout: Layout, config: CamelyonConfig, rng: np.random.Generator) -> Array:
    """(N,) uniform values of the tiles, alike in near ones: a smooth and a white field, mixed by ``correlation``."""
    smooth = smooth_field(layout.shape, config.correlation_tiles, rng)[layout.cells[:, 1], layout.cells[:, 0]]
    white = rng.standard_normal(len(layout.cells))
    return ndtr(np.sqrt(config.correlation) * smooth + np.sqrt(1 - config.correlation) * white)


def _pick(projected: Array, latents: Sequence[Array], rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """A patch for each tile: ranked along a first direction into stripes, inside a stripe along a second.

    Uniform latents pick every patch with the same chance (stripes differ by at most one patch), and near latents
    pick patches that are alike in both directions.
    """
    stripes = np.array_split(np.argsort(projected[:, 0], kind="stable"), max(1, int(np.sqrt(len(rows)))))
    stripes = [stripe[np.argsort(projected[stripe, 1], kind="stable")] for stripe in stripes]
    ends = np.cumsum([len(stripe) for stripe in stripes])
    which = np.searchsorted(ends / ends[-1], latents[0], side="right").clip(0, len(stripes) - 1)
    sizes = np.diff(ends, prepend=0)[which]
    place = np.minimum((latents[1] * sizes).astype(int), sizes - 1) + (ends - np.diff(ends, prepend=0))[which]
    return rows[np.concatenate(stripes)[place]]


def _tumour_rows(pool: FeaturePool, groups: NDArray[np.int64], config: CamelyonConfig, kind: int) -> NDArray[np.intp]:
    """Tumour patches of the groups by tumour-likeness: lowest ``subtle_pool`` for subtle, the rest salient."""
    rows = np.flatnonzero(np.isin(pool.group, groups) & (pool.label == 1))
    rows = rows[np.argsort(pool.score[rows], kind="stable")]
    cut = min(max(1, round(config.subtle_pool * len(rows))), max(1, len(rows) - 1))
    chosen = rows[:cut] if kind == SUBTLE else rows[cut:]
    return chosen if len(chosen) else rows


def between_groups(pool: FeaturePool, rng: np.random.Generator) -> Array:
    """(D,) normal draw with the covariance of the pool's group means."""
    return rng.standard_normal(len(pool.group_means)) @ pool.group_means / np.sqrt(len(pool.group_means))


def _site_shift(site: str, pool: FeaturePool, config: CamelyonConfig) -> Array:
    """(D,) shift that all slides of a hospital share."""
    return config.site_effect * between_groups(pool, generator(config, site, "site"))
