"""mhim: learn from whole-slide images with slide-level labels only."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("mhim")
