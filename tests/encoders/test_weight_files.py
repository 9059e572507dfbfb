"""Where weights come from: a path, a folder, a variable, the hub client's folder on this machine; and messages."""

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mhim.encoders import encoders
from mhim.encoders.cards import CARDS
from mhim.encoders.published import build_network
from mhim.encoders.swin import SwinCTransPath, relative_positions, shift_mask
from mhim.encoders.weight_files import find_weights, read_tensors
from mhim.errors import CheckpointError, ConfigError
from small_networks import resnet_file, resnet_tensors

TILES = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)


def build(name, **options):
    return encoders.build(encoders.parse({"name": name, **options}))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub cache with ResNet-50's repository, laid out as the client lays it out, and no network."""
    pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    from huggingface_hub import constants

    root = tmp_path / "hub"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = root / "models--timm--resnet50.tv_in1k" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    save_file(resnet_tensors(), snapshot / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_file_in_the_hub_clients_folder_is_used(hub):
    """The client finds it without network; its digest and repository are recorded."""
    encoder = build("resnet50")
    digest = hashlib.sha256((hub / "model.safetensors").read_bytes()).hexdigest()
    assert encoder.weights_sha256 == digest
    assert encoder.revision == f"timm/resnet50.tv_in1k@{digest[:12]}"
    assert encoder.encode(TILES).shape == (2, 1024)


def test_nothing_is_fetched_unasked(hub):
    """What is not on this machine is an error of one line that says how to get it."""
    with pytest.raises(ConfigError, match=r"phikon: owkin/phikon is not on this machine.*--download.*--weights FILE"):
        build("phikon")
    with pytest.raises(ConfigError, match=r"uni_v2: MahmoodLab/UNI2-h.*ask for access at https://huggingface.co/Mahm"):
        build("uni_v2")
    with pytest.raises(ConfigError, match=r"phikon: .*(cannot be fetched|no network).*--weights FILE"):
        build("phikon", download=True)
    with pytest.raises(ConfigError, match=r"ctranspath: its weights are not on the hub; give the file with --weights"):
        build("ctranspath")


def test_a_gated_repository_says_so(monkeypatch):
    """The hub's refusal becomes one line with the page to ask on."""
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    from unittest.mock import Mock

    def refuse(*args, **kwargs):
        raise hub.errors.GatedRepoError("401 Client Error.\nAccess is restricted.", response=Mock())

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(ConfigError, match=r"MahmoodLab/UNI is gated and this log-in has no access; ask for access at"):
        build("uni_v1", download=True)


def test_without_the_hub_client(monkeypatch):
    """The extra to install is named."""
    monkeypatch.setattr("mhim.encoders.weight_files.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mhim\[hub\]', or give --weights FILE"):
        build("phikon")


def test_folders_and_variables(tmp_path, monkeypatch):
    """A folder holds a preferred name or one weight file; a variable of other tools names either."""
    (tmp_path / "a.pt").touch()
    assert find_weights("x", tmp_path, files=["w.bin"]) == tmp_path / "a.pt"
    (tmp_path / "b.pt").touch()
    with pytest.raises(ConfigError, match="2 weight files here; give one file with --weights"):
        find_weights("x", tmp_path, files=["w.bin"])
    (tmp_path / "w.bin").touch()
    assert find_weights("x", tmp_path, files=["w.bin"]) == tmp_path / "w.bin"
    monkeypatch.setenv("UNI_CKPT_PATH", str(tmp_path / "w.bin"))
    assert find_weights("uni_v1", None, "MahmoodLab/UNI", variable="UNI_CKPT_PATH") == tmp_path / "w.bin"
    with pytest.raises(ConfigError, match="no such weight file"):
        find_weights("x", tmp_path / "nothing")


def test_files_without_tensors(tmp_path):
    """A checkpoint that holds an object, or numbers, is refused by name."""
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a.pt: holds no tensors by name"):
        read_tensors(tmp_path / "a.pt")
    (tmp_path / "b.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(CheckpointError, match=r"b.safetensors: not a readable weight file"):
        read_tensors(tmp_path / "b.safetensors")


@torch.inference_mode()
def test_resnet50_of_a_file(tmp_path):
    """CLAM's features: ImageNet's normalisation, 224 px, third stage averaged; folded BatchNorm changes nothing."""
    path = resnet_file(tmp_path)
    encoder = build("resnet50", weights=path)
    tensors = resnet_tensors()

    def conv(x, name, norm, stride=1, padding=0):
        x = torch.nn.functional.conv2d(x, tensors[f"{name}.weight"], None, stride, padding)
        running = (tensors[f"{norm}.running_mean"], tensors[f"{norm}.running_var"])
        return torch.nn.functional.batch_norm(x, *running, tensors[f"{norm}.weight"], tensors[f"{norm}.bias"])

    tiles = TILES[:, :224, :224].copy()
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in CARDS["resnet50"].normalisation)
    x = (torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - mean) / std
    x = torch.nn.functional.max_pool2d(conv(x, "conv1", "bn1", 2, 3).relu(), 3, 2, 1)
    for layer, blocks in (("layer1", 3), ("layer2", 4), ("layer3", 6)):
        for block in range(blocks):
            at, stride = f"{layer}.{block}", 2 if block == 0 and layer != "layer1" else 1
            y = conv(x, f"{at}.conv1", f"{at}.bn1").relu()
            y = conv(conv(y, f"{at}.conv2", f"{at}.bn2", stride, 1).relu(), f"{at}.conv3", f"{at}.bn3")
            x = (y + (conv(x, f"{at}.downsample.0", f"{at}.downsample.1", stride) if block == 0 else x)).relu()
    np.testing.assert_allclose(encoder.encode(tiles), x.mean((2, 3)).numpy(), rtol=2e-3, atol=1e-3)


def test_moving_a_file_changes_nothing_that_identifies_a_bag(tmp_path):
    """The path is no part of the configuration that a bag records; the digest is."""
    first = build("resnet50", weights=resnet_file(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    second = build("resnet50", weights=resnet_file(tmp_path / "elsewhere"))
    assert first.config.model_dump() == second.config.model_dump()
    assert first.identity() == second.identity()
    assert "deviation" in first.attributes()
    assert "deviation" not in first.identity()


@torch.inference_mode()
def test_ctranspath_of_a_file(tmp_path):
    """The published file's tables are left out, everything else must fit."""
    with torch.device("meta"):
        names = SwinCTransPath().state_dict()
    state = {key: torch.full(value.shape, 0.01) for key, value in names.items()}
    for layer in range(4):
        state[f"layers.{layer}.blocks.0.attn.relative_position_index"] = relative_positions()
    torch.save({"model": {**state, "layers.0.blocks.1.attn_mask": shift_mask(56, 3)}}, tmp_path / "ctranspath.pth")
    assert build_network("swin-ctranspath", tmp_path / "ctranspath.pth")(torch.ones(1, 3, 224, 224)).shape == (1, 768)
    del state["norm.bias"]
    torch.save({"model": state}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="missing norm.bias"):
        build("ctranspath", weights=tmp_path / "b.pth").encode(TILES)


def test_swins_tables():
    """Same place: the middle row of the table; windows that wrap around are cut along the border."""
    index = relative_positions()
    assert (index.diagonal() == 84).all()
    assert index[0, 48] == 0
    assert index[48, 0] == 168
    mask = shift_mask(14, 3)
    assert mask.shape == (4, 49, 49)
    assert (mask[0] == 0).all()
    assert mask[3].reshape(7, 7, 7, 7)[0, 0, 6, 6] == -100
    assert (mask == mask.mT).all()


@pytest.mark.parametrize("name", CARDS)
def test_cards_are_whole(name):
    """Every card states what users need before they fetch gigabytes; its class says the same."""
    card, cls = CARDS[name], encoders[name]
    assert card.licence
    assert card.paper
    assert card.hub or card.note
    assert (cls.dim, cls.tile_px, cls.mpp, cls.licence) == (card.dim, card.tile_px, card.mpp, card.licence)
    network = card.network
    if not isinstance(network, str):
        assert network.side_px == card.input_px
        assert network.side_px % network.patch_px == 0
        assert network.width % network.heads == 0


def test_widths_that_users_know():
    """The widths of other tools under the same names."""
    known = {"resnet50": 1024, "uni_v1": 1024, "uni_v2": 1536, "conch_v1": 512, "conch_v15": 768, "virchow": 2560}
    known |= {"virchow2": 2560, "phikon": 768, "phikon_v2": 1024, "gigapath": 1536, "hoptimus0": 1536}
    known |= {"hoptimus1": 1536, "midnight": 3072, "ctranspath": 768, "plip": 512}
    known |= {"kaiko_vits8": 384, "kaiko_vits16": 384, "kaiko_vitb8": 768, "kaiko_vitb16": 768, "kaiko_vitl14": 1024}
    assert {name: card.dim for name, card in CARDS.items()} == known
