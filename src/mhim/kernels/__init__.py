"""Fast paths of the training step, each beside a plain reference that it is tested equal to."""

from mhim.kernels.attention_pool import Branches, Pooled, pool
from mhim.kernels.band import convolve
from mhim.kernels.dropout import draw_seed, dropout, keep_mask
from mhim.kernels.embed import Embedding, embed, tokens_at
from mhim.kernels.gemm import affine
from mhim.kernels.heap import keep_heap
from mhim.kernels.linear import linear
from mhim.kernels.rows import Rows

__all__ = [
    "Branches",
    "Embedding",
    "Pooled",
    "Rows",
    "affine",
    "convolve",
    "draw_seed",
    "dropout",
    "embed",
    "keep_heap",
    "keep_mask",
    "linear",
    "pool",
    "tokens_at",
]
