"""mhim: learn from whole-slide images with slide-level labels only."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mhim.weights import load_weights

__version__ = version("mhim")
__all__ = ["__version__", "load_weights"]


def __getattr__(name: str) -> Any:
    """Public names that need torch are imported when first used."""
    if name == "load_weights":
        from mhim.weights import load_weights

        return load_weights
    raise AttributeError(f"module 'mhim' has no attribute '{name}'")
