"""Vision transformers: equal to torch's own layers, the same from every layout of a file, strict, resampled right."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mhim.encoders import encoders
from mhim.encoders.cards import CARDS
from mhim.encoders.published import build_network
from mhim.encoders.vit import VisionTransformer, ViTSpec
from mhim.encoders.vit_layouts import fit_positions, spec_of, to_our_names
from mhim.errors import CheckpointError, ConfigError
from small_networks import timm_tensors, vit_file

SPEC = ViTSpec(48, 2, 3, 8, 32, 96)


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def network_of(tensors, path, **changes):
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    spec = spec_of(to_our_names(tensors), heads=3)
    return build_network(ViTSpec(**{**vars(spec), **changes}), path)


@torch.inference_mode()
def test_equals_torchs_own_encoder_layers(tmp_path, pixels):
    """A plain one is torch's pre-norm TransformerEncoderLayer on patches with positions."""
    tensors = timm_tensors(scale=False)
    x = nn.functional.conv2d(pixels, tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"], stride=8)
    x = torch.cat([tensors["cls_token"].expand(3, -1, -1), x.flatten(2).mT], dim=1) + tensors["pos_embed"]
    for block in ("blocks.0.", "blocks.1."):
        layer = nn.TransformerEncoderLayer(48, 3, 96, 0, "gelu", 1e-6, batch_first=True, norm_first=True).eval()
        names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "norm1.": "norm1."}
        names |= {"norm2.": "norm2.", "linear1.": "mlp.fc1.", "linear2.": "mlp.fc2."}
        state = {f"{a}{part}": tensors[f"{block}{b}{part}"] for a, b in names.items() for part in ("weight", "bias")}
        layer.load_state_dict(state)
        x = layer(x)
    x = nn.functional.layer_norm(x, (48,), tensors["norm.weight"], tensors["norm.bias"], 1e-6)
    network = network_of(tensors, tmp_path / "a.safetensors")
    torch.testing.assert_close(network.tokens(pixels), x, atol=1e-4, rtol=1e-4)
    both = network_of(tensors, tmp_path / "a.safetensors", pool="class+mean")(pixels)
    torch.testing.assert_close(both, torch.cat([x[:, 0], x[:, 1:].mean(1)], 1), atol=1e-4, rtol=1e-4)


def test_the_spec_is_read_off_the_file():
    """Width, depth, patch, gate, registers and layer scale; heads are a guess unless given."""
    spec = spec_of(to_our_names(timm_tensors(128, 3, 8, 4, 64, gated=True, registers=2)))
    assert spec == ViTSpec(128, 3, 2, 8, 32, 64, gated=True, registers=2, layer_scale=True)
    with pytest.raises(CheckpointError, match=r"5 heads do not divide the width 128.*--set encoder.heads"):
        spec_of(to_our_names(timm_tensors(128)), heads=5)


def to_transformers(tensors):
    """timm's names in those of transformers' DINOv2."""
    out = {"embeddings.cls_token": tensors["cls_token"], "embeddings.position_embeddings": tensors["pos_embed"]}
    out["embeddings.mask_token"] = torch.zeros(1, 48)
    for part in ("weight", "bias"):
        out[f"embeddings.patch_embeddings.projection.{part}"] = tensors[f"patch_embed.proj.{part}"]
        out[f"layernorm.{part}"] = tensors[f"norm.{part}"]
        for index in (0, 1):
            ours, theirs = f"blocks.{index}.", f"encoder.layer.{index}."
            rows = tensors[f"{ours}attn.qkv.{part}"].chunk(3)
            for name, value in zip(("query", "key", "value"), rows, strict=True):
                out[f"{theirs}attention.attention.{name}.{part}"] = value.clone()
            out[f"{theirs}attention.output.dense.{part}"] = tensors[f"{ours}attn.proj.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{theirs}{name}.{part}"] = tensors[f"{ours}{name}.{part}"]
    for index in (0, 1):
        for half in (1, 2):
            out[f"encoder.layer.{index}.layer_scale{half}.lambda1"] = tensors[f"blocks.{index}.ls{half}.gamma"]
    return out


@torch.inference_mode()
def test_layouts_of_one_network_agree(tmp_path, pixels):
    """The same numbers under transformers' and DINOv2's names, and inside a training checkpoint, are the same."""
    tensors = timm_tensors()
    expected = network_of(tensors, tmp_path / "timm.safetensors")(pixels)
    found = network_of(to_transformers(tensors), tmp_path / "hf.safetensors")(pixels)
    assert torch.equal(found, expected)
    wrapped = {f"module.backbone.{key}": value for key, value in tensors.items()}
    torch.save(
        {"teacher": {**wrapped, "module.backbone.mask_token": torch.zeros(1, 48)}, "epoch": 3}, tmp_path / "t.pt"
    )
    spec = spec_of(to_our_names(tensors), heads=3)
    assert torch.equal(build_network(spec, tmp_path / "t.pt")(pixels), expected)


@torch.inference_mode()
@pytest.mark.parametrize("positions", [16, 17, 19])
def test_positions_of_registers(positions, tmp_path, pixels):
    """Positions may be stored for patches alone, for the class token too, or for all tokens."""
    tensors = timm_tensors(registers=2)
    full = tensors["pos_embed"]
    zeroed = torch.cat([torch.zeros(1, 3, 48), full[:, 3:]], 1)
    cut = {16: zeroed[:, 3:], 17: zeroed[:, 2:], 19: zeroed}[positions]
    found = network_of({**tensors, "pos_embed": cut}, tmp_path / "a.safetensors")(pixels)
    expected = network_of({**tensors, "pos_embed": zeroed}, tmp_path / "b.safetensors")(pixels)
    torch.testing.assert_close(found, expected)


def test_positions_are_resampled_to_another_side():
    """A constant stays, a ramp stays a ramp inside; nothing happens at the same side."""
    ramp = torch.arange(8.0).repeat(8, 1).reshape(1, 64, 1).repeat(1, 1, 2)
    half = fit_positions({"positions": ramp}, 4)["positions"].reshape(4, 4, 2)
    torch.testing.assert_close(half[1, 1:3, 0], torch.tensor([2.5, 4.5]), atol=0.05, rtol=0)
    assert fit_positions({"positions": ramp}, 8)["positions"] is ramp


def conch_tensors(bias):
    """A small image tower of CONCH, with its pooler as multi-head attention, or as v1.5 has it."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator) * 0.3  # noqa: E731
    head = {"query": draw(1, 32), "ln_q.weight": draw(32), "ln_q.bias": draw(32)}
    head |= {"ln_k.weight": draw(48), "ln_k.bias": draw(48)}
    q, k, v, out = draw(32, 32), draw(32, 48), draw(32, 48), draw(32, 32)
    if bias:
        head |= {"attn.q_proj_weight": q, "attn.k_proj_weight": k, "attn.v_proj_weight": v}
        head |= {"attn.in_proj_bias": draw(96), "attn.out_proj.weight": out, "attn.out_proj.bias": draw(32)}
    else:
        head |= {"to_q.weight": q, "to_kv.weight": torch.cat([k, v]), "to_out.weight": out}
    prefix = "visual." if bias else ""
    tensors = {f"{prefix}trunk.{key}": value for key, value in timm_tensors().items()}
    tensors |= {f"{prefix}attn_pool_contrast.{key}": value for key, value in head.items()}
    tensors |= {f"{prefix}ln_contrast.weight": draw(32), f"{prefix}ln_contrast.bias": draw(32)}
    return tensors | ({"text.token_embedding.weight": draw(3, 3), "logit_scale": draw(1)} if bias else {})


@torch.inference_mode()
def test_conchs_pooler_is_torchs_multihead_attention(tmp_path, pixels):
    """Query, keys and values of different widths, eight heads, norms before and behind."""
    tensors = conch_tensors(bias=True)
    network = network_of(tensors, tmp_path / "a.safetensors")
    head = {key.removeprefix("visual.attn_pool_contrast."): value for key, value in tensors.items()}
    attention = nn.MultiheadAttention(32, 8, kdim=48, vdim=48, batch_first=True)
    attention.load_state_dict({key.removeprefix("attn."): head[key] for key in head if key.startswith("attn.")})
    tokens = nn.functional.layer_norm(network.tokens(pixels), (48,), head["ln_k.weight"], head["ln_k.bias"])
    query = nn.functional.layer_norm(head["query"], (32,), head["ln_q.weight"], head["ln_q.bias"])
    found = attention(query[None].expand(3, -1, -1), tokens, tokens)[0][:, 0]
    ln = [tensors[f"visual.ln_contrast.{part}"] for part in ("weight", "bias")]
    torch.testing.assert_close(network(pixels), nn.functional.layer_norm(found, (32,), *ln), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_conch_15s_pooler_has_no_bias(tmp_path, pixels):
    """The same as the other with all biases zero."""
    with_bias, without = conch_tensors(bias=True), conch_tensors(bias=False)
    for key in with_bias:
        if "attn.in_proj_bias" in key or "out_proj.bias" in key:
            with_bias[key].zero_()
    ln = {key: value for key, value in with_bias.items() if "ln_contrast" in key}
    without |= {key.removeprefix("visual."): value for key, value in ln.items()}
    first, second = (network_of(each, tmp_path / "a.safetensors")(pixels) for each in (with_bias, without))
    torch.testing.assert_close(first, second)


def test_files_that_do_not_fit(tmp_path):
    """A missing block, an extra tensor and a foreign file are named in one line."""
    tensors = timm_tensors()
    for change in ("missing", "unexpected"):
        changed = dict(tensors)
        if change == "missing":
            del changed["blocks.1.attn.proj.bias"]
        else:
            changed["blocks.1.attn.extra"] = torch.zeros(1)
        save_file(changed, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match=rf"a.safetensors: does not fit: {change} blocks.1.attn"):
            build_network(spec_of(to_our_names(tensors), heads=3), tmp_path / "a.safetensors")
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a.safetensors: not a vision transformer.*conv.weight"):
        build_network(SPEC, tmp_path / "a.safetensors")
    (tmp_path / "b.pt").write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match=r"b.pt: not a readable weight file"):
        build_network(SPEC, tmp_path / "b.pt")


def test_code_in_a_file_is_not_run(tmp_path):
    """A pickle with a function call is refused."""
    import os

    class Bad:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"weight": Bad()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="not a readable weight file"):
        build_network(SPEC, tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


def test_your_own_vit(tmp_path):
    """Encoder ``vit``: normalisation and antialiased resize as stated; options reach the network."""
    path = vit_file(tmp_path)
    options = {"name": "vit", "weights": path, "heads": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    encoder = encoders.build(encoders.parse(options))
    tiles = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    pixels = (torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    network = network_of(timm_tensors(), tmp_path / "b.safetensors")
    with torch.inference_mode():
        np.testing.assert_allclose(encoder.encode(tiles), network(pixels).numpy(), atol=1e-4, rtol=1e-4)
    enlarged = tiles.repeat(2, axis=1).repeat(2, axis=2)
    cosine = np.corrcoef(encoder.encode(enlarged)[0], encoder.encode(tiles)[0])[0, 1]
    assert cosine > 0.9
    both = encoders.build(encoders.parse({**options, "pool": "class+mean"}))
    assert both.dim == 96
    assert both.encode(tiles).shape == (2, 96)
    with pytest.raises(ConfigError, match="square tiles are needed"):
        encoder.encode(np.zeros((1, 32, 40, 3), np.uint8))


@pytest.mark.parametrize(("name", "millions"), [("uni_v1", 303.4), ("virchow2", 631.2), ("hoptimus0", 1134.8)])
def test_published_sizes(name, millions):
    """As many numbers as the authors say: 0.3 B (ViT-L), 632 M (ViT-H), 1.1 B (ViT-g)."""
    with torch.device("meta"):
        network = VisionTransformer(CARDS[name].network)
    assert sum(value.numel() for value in network.parameters()) / 1e6 == pytest.approx(millions, rel=2e-3)
