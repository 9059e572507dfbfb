"""Slides to bags: the work of ``mhim encode``.

Tiles are read by threads (decoders release the interpreter), gathered into batches across slides, encoded in one
place, and written by another thread, all at once, with a fixed number of buffers between them.
"""

from __future__ import annotations

from mhim.encode.config import EncodeConfig, build_encoder, resolve_device, resolve_devices
from mhim.encode.jobs import EncodeJob, EncodeResult, encode_jobs, parse_shard
from mhim.encode.run import encode_grids

__all__ = [
    "EncodeConfig",
    "EncodeJob",
    "EncodeResult",
    "build_encoder",
    "encode_grids",
    "encode_jobs",
    "parse_shard",
    "resolve_device",
    "resolve_devices",
]
