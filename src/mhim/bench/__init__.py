"""What models and methods cost: one training step to call from outside, and the cost table."""

from mhim.bench.step import make_step

__all__ = ["make_step"]
