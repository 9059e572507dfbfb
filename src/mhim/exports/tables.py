"""Tables of tile values: CSV, Parquet, AnnData."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from mhim.artefacts import atomic_path
from mhim.errors import ConfigError
from mhim.exports.layers import SlideLayers
from mhim.maps.values import tile_table
from mhim.training.runs import write_table


def layer_table(layers: SlideLayers) -> pd.DataFrame:
    """One row a tile: slide_id, x_px0, y_px0, width_px0, height_px0 and the maps; always level-0 pixels."""
    table = tile_table(layers.bag, layers.tile_px0, layers.values, layers.classes)
    table.insert(0, "slide_id", layers.slide_id)
    return table


def write_csv(path: Path, layers: SlideLayers) -> None:
    """Write the table as CSV."""
    write_table(path, layer_table(layers))


def write_parquet(path: Path, layers: SlideLayers) -> None:
    """Write the table as Parquet.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401  (pandas writes with it)
    except ModuleNotFoundError:
        raise ConfigError("Parquet needs pyarrow; pip install 'mhim[export]'") from None
    with atomic_path(path) as temporary:
        layer_table(layers).to_parquet(temporary, index=False)


def write_anndata(path: Path, layers: SlideLayers, with_features: bool) -> None:
    """Write an AnnData file: ``obs`` tiles and maps, ``obsm["spatial"]`` tile centres in level-0 pixels.

    ``uns["mhim"]`` holds, as JSON, what made the file; ``uns["spatial_um_per_px"]`` the slide's mpp.

    Raises:
        ConfigError: anndata is not installed.
    """
    try:
        from anndata import AnnData  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ConfigError("AnnData needs anndata; pip install 'mhim[anndata]'") from None
    assert layers.bag.xy_px0 is not None
    table = layer_table(layers)
    table.index = pd.Index([f"{layers.slide_id}-{index}" for index in range(len(table))])
    features = layers.bag.features.astype(np.float32) if with_features else None
    data = AnnData(X=features, obs=table)
    data.obsm["spatial"] = layers.bag.xy_px0 + layers.tile_px0 / 2
    data.uns["mhim"] = json.dumps(layers.facts, sort_keys=True)
    if layers.frame.mpp0 is not None:
        data.uns["spatial_um_per_px"] = layers.frame.mpp0
    with atomic_path(path) as temporary:
        data.write_h5ad(temporary)
