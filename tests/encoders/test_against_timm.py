"""Our networks against timm, torchvision and transformers: same weights, same features; shapes of the published ones.

Needs their packages, which bring another torch; ``make test-timm`` runs this file in an environment of its own.
"""

import numpy as np
import pytest
import torch

from mhim.encoders import encoders
from mhim.encoders.cards import CARDS
from mhim.encoders.published import build_network
from mhim.encoders.resnet import ResNet50Stage3, is_unused
from mhim.encoders.swin import SwinCTransPath
from mhim.encoders.vit import VisionTransformer, ViTSpec
from mhim.encoders.vit_layouts import spec_of, to_our_names
from mhim.encoders.weight_files import load_strictly, read_tensors

timm = pytest.importorskip("timm", reason="needs timm: make test-timm")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def scramble(module):
    """Random numbers in every tensor, so that no term is zero or one by chance."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn_like(value) * 0.3
                value.copy_(noise.abs() + 0.5 if "running_var" in name else noise)
    return module.eval()


def timm_vit(**options):
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    return scramble(timm.models.VisionTransformer(**{**kwargs, **options}))


GATED = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 5.33334}
VARIANTS = {
    "plain": {},
    "uni_v1": {"init_values": 1e-5},
    "uni_v2": {"init_values": 1e-5, "no_embed_class": True, "reg_tokens": 8, **GATED},
    "virchow2": {"init_values": 1e-5, "reg_tokens": 4, "global_pool": "", **GATED},
    "hoptimus": {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True, **GATED},
    "clip": {"pre_norm": True},
}


@torch.inference_mode()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_vit_of_timm(variant, tmp_path):
    """The file of a timm transformer gives timm's features, whatever its variations."""
    model = timm_vit(**VARIANTS[variant])
    torch.save(model.state_dict(), tmp_path / "w.pt")
    spec = spec_of(to_our_names(model.state_dict()), heads=3)
    x = torch.randn(3, 3, 32, 32)
    tokens = build_network(spec, tmp_path / "w.pt").tokens(x)
    torch.testing.assert_close(tokens, model.forward_features(x), atol=2e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2-gated", "dinov2-registers", "clip"])
def test_a_vit_of_transformers(kind, tmp_path):
    """The same for files in the names of transformers."""
    transformers = pytest.importorskip("transformers", reason="needs transformers: make test-timm")
    size = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    x = torch.randn(3, 3, 32, 32)
    if kind == "clip":
        vision = transformers.CLIPVisionConfig(**size, intermediate_size=96, projection_dim=20)
        text = transformers.CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1)
        config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=20)
        model = scramble(transformers.CLIPModel(config))
        expected = model.visual_projection(model.vision_model(x).pooler_output)
        changes = {"eps": 1e-5, "activation": "quick-gelu"}
    else:
        config, cls = {
            "vit": (transformers.ViTConfig(**size, intermediate_size=96), transformers.ViTModel),
            "dinov2": (transformers.Dinov2Config(**size), transformers.Dinov2Model),
            "dinov2-gated": (transformers.Dinov2Config(**size, use_swiglu_ffn=True), transformers.Dinov2Model),
            "dinov2-registers": (
                transformers.Dinov2WithRegistersConfig(**size, num_register_tokens=4),
                transformers.Dinov2WithRegistersModel,
            ),
        }[kind]
        model = scramble(cls(config))
        expected = model(x).last_hidden_state[:, 0]
        changes = {"eps": config.layer_norm_eps}
    model.save_pretrained(tmp_path)  # in the names that are published, whatever the class calls them
    found = spec_of(to_our_names(read_tensors(tmp_path / "model.safetensors")), heads=3)
    network = build_network(ViTSpec(**{**vars(found), **changes}), tmp_path / "model.safetensors")
    torch.testing.assert_close(network(x), expected, atol=2e-4, rtol=1e-4)


TIMM_MODELS = {
    "uni_v1": ("vit_large_patch16_224", {"init_values": 1e-5}),
    "uni_v2": (
        "vit_giant_patch14_224",
        {"depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2, "init_values": 1e-5}
        | {"no_embed_class": True, "reg_tokens": 8, "mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU},
    ),
    "virchow": ("vit_huge_patch14_224", {**GATED, "mlp_ratio": 5.3375, "init_values": 1e-5, "global_pool": ""}),
    "virchow2": (
        "vit_huge_patch14_224",
        {**GATED, "mlp_ratio": 5.3375, "init_values": 1e-5, "global_pool": "", "reg_tokens": 4},
    ),
    "gigapath": (
        "vit_giant_patch14_dinov2",
        {"img_size": 224, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24}
        | {"mlp_ratio": 5.33334, "init_values": 1e-5},
    ),
    "hoptimus0": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "init_values": 1e-5}),
    "hoptimus1": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "init_values": 1e-5}),
    "kaiko_vits16": ("vit_small_patch16_224", {}),
    "kaiko_vits8": ("vit_small_patch8_224", {}),
    "kaiko_vitb16": ("vit_base_patch16_224", {}),
    "kaiko_vitb8": ("vit_base_patch8_224", {}),
    "kaiko_vitl14": ("vit_large_patch14_reg4_dinov2", {"img_size": 224}),
}
"""The published configurations, as their hub pages give them."""


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_published_shapes_of_timm(name):
    """The card's network at full size has exactly the tensors of timm's model, and its heads and eps."""
    model_name, options = TIMM_MODELS[name]
    with torch.device("meta"):
        model = timm.create_model(model_name, num_classes=0, **options)
        ours = VisionTransformer(CARDS[name].network)
    shapes = {key: value.shape for key, value in to_our_names(model.state_dict()).items()}
    assert shapes == {key: value.shape for key, value in ours.state_dict().items()}
    assert model.blocks[0].attn.num_heads == CARDS[name].network.heads
    assert model.norm.eps == CARDS[name].network.eps


TRANSFORMERS_MODELS = {
    "phikon": ("ViT", {"layer_norm_eps": 1e-12}),
    "phikon_v2": (
        "Dinov2",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 16, "image_size": 224},
    ),
    "midnight": (
        "Dinov2",
        {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "patch_size": 14, "image_size": 224}
        | {"use_swiglu_ffn": True},
    ),
    "plip": ("CLIP", {}),
}


@pytest.mark.parametrize("name", TRANSFORMERS_MODELS)
def test_published_shapes_of_transformers(name):
    """Those that come as transformers models have the same number of numbers, heads and eps."""
    transformers = pytest.importorskip("transformers", reason="needs transformers: make test-timm")
    kind, options = TRANSFORMERS_MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**options)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}Model")(config)
        ours = VisionTransformer(CARDS[name].network)
    unused = ("pooler", "text_", "logit_scale", "embeddings.mask_token")
    theirs = sum(value.numel() for key, value in model.named_parameters() if not key.startswith(unused))
    position_of_class = CARDS[name].network.width  # added to the class token here
    assert theirs == sum(value.numel() for value in ours.parameters()) + position_of_class
    part = config.vision_config if kind == "CLIP" else config
    assert (part.num_attention_heads, part.layer_norm_eps) == (CARDS[name].network.heads, CARDS[name].network.eps)


@torch.inference_mode()
def test_resnet50_of_torchvision(tmp_path):
    """torchvision's third stage, averaged over space; and timm's resnet50.tv_in1k has the same tensors."""
    torchvision = pytest.importorskip("torchvision", reason="needs torchvision: make test-timm")
    model = scramble(torchvision.models.resnet50())
    torch.save(model.state_dict(), tmp_path / "w.pth")
    x = torch.randn(2, 3, 64, 64)
    stem = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    expected = model.layer3(model.layer2(model.layer1(stem))).mean((2, 3))
    found = build_network("resnet50-stage3", tmp_path / "w.pth")(x)
    torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max(), atol=1e-4, rtol=1e-3)
    with torch.device("meta"):
        names = timm.create_model("resnet50.tv_in1k").state_dict()
        assert {key for key in names if not is_unused(key)} == {
            key for key in ResNet50Stage3().state_dict() if not is_unused(key)
        }


@torch.inference_mode()
def test_swin_of_timm():
    """The transformer of CTransPath is timm's Swin-T (names moved), behind any stem."""
    model = scramble(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0))
    theirs = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)  # timm merges at the start of a stage, the published file at its end
        if not key.startswith("patch_embed"):
            theirs[".".join(parts)] = value
    ours = SwinCTransPath().eval()
    load_strictly(
        ours, {**{k: v for k, v in ours.state_dict().items() if k.startswith("patch_embed")}, **theirs}, "timm"
    )
    x = torch.randn(2, 56, 56, 96)
    ours.patch_embed = torch.nn.Identity()
    model.patch_embed = torch.nn.Identity()
    torch.testing.assert_close(ours(x), model(x), atol=2e-4, rtol=1e-3)


@torch.inference_mode()
def test_any_timm_model(tmp_path):
    """``timm:NAME`` gives timm's pooled features of timm's normalisation, and timm's facts."""
    torch.save(scramble(timm.create_model("vit_tiny_patch16_224")).state_dict(), tmp_path / "w.pt")
    encoder = encoders.build(
        encoders.parse({"name": "timm:vit_tiny_patch16_224", "weights": tmp_path / "w.pt"}), device="cpu"
    )
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    model.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True), strict=False)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    pixels = (torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(encoder.encode(tiles), model(pixels).numpy(), atol=2e-4, rtol=1e-3)
    assert encoder.dim == 192
    assert encoder.attributes()["encoder"] == "timm:vit_tiny_patch16_224"
