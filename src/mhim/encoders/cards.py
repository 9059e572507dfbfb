"""Facts of published encoders, under the names that users know: width, tile, scale, normalisation, licence, access.

Checked in November 2026 against the model cards and configuration files on the hub, as far as they can be read
without the authors' leave, and against other programs that load the same files. What rests on less says so in
``note``. A licence here is a pointer, no advice: read the one that comes with the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mhim.encoders.vit import ViTSpec

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
H_OPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]

BIN, SAFE = "pytorch_model.bin", "model.safetensors"


@dataclass(frozen=True)
class Card:
    """A published encoder.

    Attributes:
        name: what users call it.
        title: its full name.
        network: shape of its vision transformer, or the name of another network.
        tile_px, mpp: tile side and scale that peers use it at.
        input_px: side of the network's input; a tile of another side is fitted as ``fit`` says.
        fit: "resize" scales the tile (antialiased), "crop" takes its centre.
        filter: of the resize.
        normalisation: mean and deviation per channel, of pixels in [0, 1].
        licence: of the weights.
        gated: whether the hub asks for a log-in and consent.
        hub: repository on the hub; "" where the weights lie elsewhere.
        files: names of the weight file there, the preferred one first.
        paper: citation.
        note: what to know.
        variable: environment variable that names a local file, as other tools use it.
    """

    name: str
    title: str
    network: ViTSpec | Literal["resnet50-stage3", "swin-ctranspath"]
    tile_px: int
    mpp: float
    licence: str
    gated: bool
    hub: str
    paper: str
    input_px: int = 224
    fit: Literal["resize", "crop"] = "resize"
    filter: Literal["bilinear", "bicubic"] = "bicubic"
    normalisation: Normalisation = IMAGENET
    files: tuple[str, ...] = (BIN, SAFE)
    note: str = ""
    variable: str = ""

    @property
    def dim(self) -> int:
        """Width of the features."""
        if isinstance(self.network, ViTSpec):
            return self.network.dim
        return {"resnet50-stage3": 1024, "swin-ctranspath": 768}[self.network]


BASE = ViTSpec(768, 12, 12, 16, 224, 3072)
SMALL = replace(BASE, width=384, heads=6, hidden=1536)
LARGE = replace(BASE, width=1024, depth=24, heads=16, hidden=4096)
HUGE = ViTSpec(1280, 32, 16, 14, 224, 3416, gated=True, layer_scale=True, pool="class+mean")
GIANT = ViTSpec(1536, 40, 24, 14, 224, 4096, gated=True, layer_scale=True)

_MAHMOOD = "CC-BY-NC-ND-4.0, academic research only"
_UNI = "Chen et al., Nature Medicine 2024"
_CONCH = "Lu et al., Nature Medicine 2024"
_KAIKO = "Aben et al., arXiv:2404.15217, 2024"
_OWKIN = "Owkin non-commercial licence"


def _kaiko(name: str, title: str, network: ViTSpec, model: str) -> Card:
    return Card(
        name=name,
        title=title,
        network=network,
        tile_px=256,
        mpp=0.5,
        licence="Kaiko non-commercial licence",
        gated=False,
        hub=f"1aurent/{model}.kaiko_ai_towards_large_pathology_fms",
        paper=_KAIKO,
        filter="bilinear",
        normalisation=HALF,
        files=(SAFE, BIN),
        note="trained on several scales (0.25 to 2 mpp); the hub files are a third party's copy of the authors'",
    )


_CARDS = (
    Card(
        "resnet50",
        "ResNet-50, ImageNet-1k, third stage (CLAM's features)",
        "resnet50-stage3",
        tile_px=256,
        mpp=0.5,
        licence="BSD-3-Clause (torchvision's weights; ImageNet's own terms apply to the images)",
        gated=False,
        hub="timm/resnet50.tv_in1k",
        paper="He et al., CVPR 2016; truncated as by Lu et al., Nature Biomedical Engineering 2021",
        filter="bilinear",
        files=(SAFE, BIN, "resnet50-0676ba61.pth", "resnet50-19c8e357.pth"),
    ),
    Card(
        "uni_v1",
        "UNI, ViT-L/16",
        replace(LARGE, layer_scale=True),
        tile_px=256,
        mpp=0.5,
        licence=_MAHMOOD,
        gated=True,
        hub="MahmoodLab/UNI",
        paper=_UNI,
        filter="bilinear",
        variable="UNI_CKPT_PATH",
    ),
    Card(
        "uni_v2",
        "UNI2-h, ViT-H/14 with 8 registers",
        replace(GIANT, depth=24, registers=8),
        tile_px=256,
        mpp=0.5,
        licence=_MAHMOOD,
        gated=True,
        hub="MahmoodLab/UNI2-h",
        paper=_UNI,
        filter="bilinear",
    ),
    Card(
        "conch_v1",
        "CONCH, ViT-B/16 image tower before its projection",
        replace(BASE, side_px=448, pool="query", project=512),
        tile_px=512,
        mpp=0.5,
        licence=_MAHMOOD,
        gated=True,
        hub="MahmoodLab/CONCH",
        paper=_CONCH,
        input_px=448,
        normalisation=CLIP,
        note="mean and deviation are OpenAI CLIP's, as the authors' code has them by our reading",
        variable="CONCH_CKPT_PATH",
    ),
    Card(
        "conch_v15",
        "CONCH v1.5, ViT-L/16 image tower of TITAN",
        replace(LARGE, side_px=448, layer_scale=True, pool="query", project=768, pooler_bias=False),
        tile_px=512,
        mpp=0.5,
        licence=_MAHMOOD,
        gated=True,
        hub="MahmoodLab/conchv1_5",
        paper="Ding et al., arXiv:2411.19666, 2024 (TITAN)",
        input_px=448,
        filter="bilinear",
        files=("pytorch_model_vision.bin", BIN, SAFE),
    ),
    Card(
        "virchow",
        "Virchow, ViT-H/14: class token and mean of the patches",
        HUGE,
        tile_px=224,
        mpp=0.5,
        licence="Apache-2.0",
        gated=True,
        hub="paige-ai/Virchow",
        paper="Vorontsov et al., Nature Medicine 2024",
    ),
    Card(
        "virchow2",
        "Virchow2, ViT-H/14 with 4 registers: class token and mean of the patches",
        replace(HUGE, registers=4),
        tile_px=224,
        mpp=0.5,
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        hub="paige-ai/Virchow2",
        paper="Zimmermann et al., arXiv:2408.00738, 2024",
        files=(SAFE, BIN),
    ),
    Card(
        "phikon",
        "Phikon, ViT-B/16",
        replace(BASE, eps=1e-12),
        tile_px=224,
        mpp=0.5,
        licence=_OWKIN,
        gated=False,
        hub="owkin/phikon",
        paper="Filiot et al., medRxiv 2023.07.21.23292757",
        filter="bilinear",
        files=(SAFE, BIN),
    ),
    Card(
        "phikon_v2",
        "Phikon-v2, ViT-L/16",
        replace(LARGE, layer_scale=True),
        tile_px=224,
        mpp=0.5,
        licence=_OWKIN,
        gated=False,
        hub="owkin/phikon-v2",
        paper="Filiot et al., arXiv:2409.09173, 2024",
        files=(SAFE, BIN),
    ),
    Card(
        "gigapath",
        "Prov-GigaPath tile encoder, ViT-g/16",
        replace(GIANT, patch_px=16),
        tile_px=256,
        mpp=0.5,
        licence="Apache-2.0, with the authors' terms of use on the hub",
        gated=True,
        hub="prov-gigapath/prov-gigapath",
        paper="Xu et al., Nature 2024",
        fit="crop",
        note="the authors crop the middle 224 px of a tile of 256 px",
    ),
    Card(
        "hoptimus0",
        "H-optimus-0, ViT-g/14 with 4 registers",
        replace(GIANT, registers=4),
        tile_px=224,
        mpp=0.5,
        licence="Apache-2.0",
        gated=True,
        hub="bioptimus/H-optimus-0",
        paper="Saillard et al., github.com/bioptimus/releases, 2024 (no paper)",
        normalisation=H_OPTIMUS,
        note="the card says Apache-2.0 and shows a log-in; whether consent is asked may change",
    ),
    Card(
        "hoptimus1",
        "H-optimus-1, ViT-g/14 with 4 registers",
        replace(GIANT, registers=4),
        tile_px=224,
        mpp=0.5,
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        hub="bioptimus/H-optimus-1",
        paper="Bioptimus, 2025 (no paper)",
        normalisation=H_OPTIMUS,
        files=(SAFE, BIN),
    ),
    Card(
        "midnight",
        "Midnight-12k, ViT-g/14: class token and mean of the patches",
        replace(GIANT, pool="class+mean"),
        tile_px=224,
        mpp=0.5,
        licence="MIT",
        gated=False,
        hub="kaiko-ai/midnight",
        paper="Karasikov et al., arXiv:2504.05186, 2025",
        filter="bilinear",
        normalisation=HALF,
        files=(SAFE, BIN),
        note="trained on several scales (0.25 to 2 mpp)",
    ),
    Card(
        "ctranspath",
        "CTransPath, Swin-T with a convolutional stem",
        "swin-ctranspath",
        tile_px=256,
        mpp=1.0,
        licence="GPL-3.0 (the authors' repository)",
        gated=False,
        hub="",
        paper="Wang et al., Medical Image Analysis 2022",
        filter="bilinear",
        files=("ctranspath.pth",),
        note="the authors publish ctranspath.pth outside the hub (github.com/Xiyue-Wang/TransPath); give it with "
        "--weights. SHA-256 as other tools pin it: 7c998680060c8743551a412583fac689db43cec07053b72dfec6dcd810113539",
    ),
    Card(
        "plip",
        "PLIP, CLIP ViT-B/32, projected image features",
        replace(BASE, patch_px=32, activation="quick-gelu", pre_norm=True, patch_bias=False, eps=1e-5, project=512),
        tile_px=224,
        mpp=0.5,
        licence="none stated on the hub, to our knowledge: ask the authors",
        gated=False,
        hub="vinid/plip",
        paper="Huang et al., Nature Medicine 2023",
        normalisation=CLIP,
        files=(BIN, SAFE),
        note="trained on pictures of many scales; 0.5 mpp is a custom, not a fact of the model",
    ),
    _kaiko("kaiko_vits16", "Kaiko ViT-S/16", SMALL, "vit_small_patch16_224"),
    _kaiko("kaiko_vits8", "Kaiko ViT-S/8", replace(SMALL, patch_px=8), "vit_small_patch8_224"),
    _kaiko("kaiko_vitb16", "Kaiko ViT-B/16", BASE, "vit_base_patch16_224"),
    _kaiko("kaiko_vitb8", "Kaiko ViT-B/8", replace(BASE, patch_px=8), "vit_base_patch8_224"),
    _kaiko(
        "kaiko_vitl14",
        "Kaiko ViT-L/14 with 4 registers",
        replace(LARGE, patch_px=14, registers=4, layer_scale=True),
        "vit_large_patch14_reg4_224",
    ),
)

CARDS = {card.name: card for card in _CARDS}
