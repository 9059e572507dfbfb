"""Maps in files that other programs open: QuPath GeoJSON, pyramidal OME-TIFF, CSV, Parquet, AnnData."""

from __future__ import annotations

from mhim.exports.config import FORMATS, ExportConfig
from mhim.exports.write import export_maps

__all__ = ["FORMATS", "ExportConfig", "export_maps"]
