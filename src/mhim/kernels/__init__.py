"""Fast paths of the training step, each beside a plain reference that it is tested equal to."""

from mhim.kernels.attention import attend, attend_and_weigh
from mhim.kernels.attention_pool import Branches, Pooled, pool
from mhim.kernels.band import convolve
from mhim.kernels.depthwise import depthwise
from mhim.kernels.dropout import draw_seed, dropout, keep_mask
from mhim.kernels.embed import Embedding, embed, token_chunks, tokens_at
from mhim.kernels.gemm import affine, multiply, one_by_one
from mhim.kernels.inverse import Factored, Formed, inverse, pseudo_inverse
from mhim.kernels.linear import linear
from mhim.kernels.online import OnlineMax, OnlineSoftmax
from mhim.kernels.rows import Rows
from mhim.kernels.segments import Bags, Segments, branch_scores, exact_linear, segment_pool, segment_softmax
from mhim.kernels.transfer import to_device

__all__ = [
    "Bags",
    "Branches",
    "Embedding",
    "Factored",
    "Formed",
    "OnlineMax",
    "OnlineSoftmax",
    "Pooled",
    "Rows",
    "Segments",
    "affine",
    "attend",
    "attend_and_weigh",
    "branch_scores",
    "convolve",
    "depthwise",
    "draw_seed",
    "dropout",
    "embed",
    "exact_linear",
    "inverse",
    "keep_mask",
    "linear",
    "multiply",
    "one_by_one",
    "pool",
    "pseudo_inverse",
    "segment_pool",
    "segment_softmax",
    "to_device",
    "token_chunks",
    "tokens_at",
]
