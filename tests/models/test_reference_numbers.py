"""Every array that the reference programs gave for these models (skipped without the shared folder)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from mhim.models import CLAMSB, MILModel, MILOutput, models
from mhim.weights import LAYOUTS, import_checkpoint

Quantity = Callable[[MILModel, MILOutput], torch.Tensor]

ABMIL: dict[str, Quantity] = {
    "logits": lambda _, o: o.logits,
    "attn_raw": lambda _, o: o.extras["attention_logits"],
    "attn_softmax": lambda _, o: o.attention,
    "bag_embed": lambda _, o: o.bag_embedding,
    "cam_prob": lambda _, o: o.instance_probabilities,
}
DSMIL: dict[str, Quantity] = {
    "logits_bag": lambda _, o: o.logits,
    "logits_max": lambda _, o: o.extras["max_logits"],
    "prob": lambda _, o: o.probabilities,
    "inst_scores": lambda _, o: o.instance_scores,
    "attn_A": lambda _, o: o.attention.T,
    "bag_embed": lambda _, o: o.bag_embedding,
    "teacher_score": lambda _, o: o.salience,
}
DSMIL_REPOSITORY: dict[str, Quantity] = {
    "bag_logits": lambda _, o: o.logits,
    "max_logits": lambda _, o: o.extras["max_logits"],
    "inst_logits": lambda _, o: o.instance_scores,
    "attn_A": lambda _, o: o.attention.T,
    "bag_embed": lambda _, o: o.bag_embedding,
}
CLAM: dict[str, Quantity] = {
    **{key: ABMIL[key] for key in ("logits", "attn_raw", "attn_softmax", "bag_embed")},
    "prob": lambda _, o: o.probabilities,
}
TRANSMIL: dict[str, Quantity] = {
    "logits": lambda _, o: o.logits,
    "cls": lambda _, o: o.bag_embedding,
    "attn1": lambda _, o: o.extras["attention_layer1"],
    "attn2": lambda _, o: o.extras["attention_layer2"],
}

CASES = {
    "abmil_c16": ("mhim_v1_abmil_c16_fold0_seed2021", ABMIL, 1e-9),
    "abmil_gated_tcga": ("mhim_v1_abmil_gated_tcga_fold0_seed2021", ABMIL, 1e-9),
    "dsmil_mhim_c16": ("mhim_v1_dsmil_c16_fold0_seed2021", DSMIL, 1e-7),
    "clam_repo_demo": ("clam_repo_demo_clam_sb_s0", CLAM, 1e-9),
    "transmil_full": ("mhim_v1_transmil_full_random_f16", TRANSMIL, 1e-9),
}
EXACT = [pytest.param(False, id="float32"), pytest.param(True, id="float64")]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden"


@cache
def bags(path: Path) -> dict[str, np.ndarray]:
    return dict(np.load(path))


def bag(golden: Path, n: int, divisor: int, width: int) -> torch.Tensor:
    codes = bags(golden / "inputs" / "bags.npz")[f"codes_N{n}"]
    return torch.from_numpy(codes[:, :width].astype(np.float32) / divisor)


def arrays(golden: Path, file: str, is_exact: bool) -> dict[str, np.ndarray]:
    """The arrays of a file in one precision, without the suffix; integers belong to both."""
    found = dict(np.load(golden / "outputs" / f"{file}_outputs.npz"))
    if is_exact:
        return {key.removesuffix("_f64"): value for key, value in found.items() if key.endswith("_f64")}
    return {key: value for key, value in found.items() if not key.endswith("_f64")}


def load(golden: Path, checkpoint: str, is_exact: bool) -> MILModel:
    model = import_checkpoint(golden / "checkpoints" / f"{checkpoint}.safetensors").model
    return model.double() if is_exact else model


def agree(found: torch.Tensor, expected: np.ndarray, name: str, is_exact: bool, tolerance: float = 1e-9) -> None:
    """Float64: absolute. Float32: 1e-5 of the array's largest entry, which is what float32 itself keeps."""
    if not is_exact:
        tolerance = 1e-5 * np.abs(expected).max()
    found_values = found.detach().numpy().reshape(expected.shape)
    np.testing.assert_allclose(found_values, expected, rtol=0, atol=tolerance, err_msg=name)


def of_bag(key: str) -> tuple[str, int, int]:
    """Quantity, number of instances and divisor of ``<quantity>_N<n>[_s<divisor>]``."""
    match = re.fullmatch(r"(.*)_N(\d+)(?:_s(\d+))?", key)
    assert match, key
    return match[1], int(match[2]), int(match[3] or 64)


def compare(golden, model, file, quantities, is_exact, tolerance, ending="") -> int:
    """Compare every array of a file whose quantity is known; how many there were."""
    outputs, compared = {}, 0
    for key, expected in arrays(golden, file, is_exact).items():
        name, n, divisor = of_bag(key)
        if not name.endswith(ending) or name.removesuffix(ending) not in quantities:
            continue
        if (n, divisor) not in outputs:
            with torch.no_grad():
                outputs[n, divisor] = model(bag(golden, n, divisor, model.in_dim))
        found = quantities[name.removesuffix(ending)](model, outputs[n, divisor])
        agree(found, expected, key, is_exact, tolerance)
        compared += 1
    return compared


@pytest.mark.parametrize("is_exact", EXACT)
@pytest.mark.parametrize("file", CASES)
def test_models(golden, file, is_exact):
    checkpoint, quantities, tolerance = CASES[file]
    model = load(golden, checkpoint, is_exact)
    assert compare(golden, model, file, quantities, is_exact, tolerance) >= 2 * len(quantities)


@pytest.mark.parametrize("is_exact", EXACT)
@pytest.mark.parametrize("cohort", ["c16", "tcga"])
def test_dsmil_repository(golden, cohort, is_exact):
    """Its own aggregators, on the first 512 columns."""
    model = load(golden, f"dsmil_repo_{cohort}_aggregator", is_exact)
    compared = compare(golden, model, "dsmil_repo", DSMIL_REPOSITORY, is_exact, 1e-7, f"_{cohort}")
    if not compared:
        pytest.skip(f"no outputs for {cohort} were handed out")


@pytest.mark.parametrize("is_exact", EXACT)
def test_clam_instance_clustering(golden, is_exact):
    """Loss, predictions and pseudo labels for both losses, both labels, with and without subtyping."""
    model = load(golden, "clam_repo_demo_clam_sb_s0", is_exact)
    assert isinstance(model, CLAMSB)
    outputs, compared = {}, 0
    for key, expected in arrays(golden, "clam_repo_demo", is_exact).items():
        name, n, divisor = of_bag(key)
        if not name.startswith("inst_"):
            continue
        _, what, loss, label, subtyping = name.split("_")
        options = {"instance_loss": "svm" if loss == "svm" else "cross-entropy", "subtyping": subtyping == "sub1"}
        model.config = model.config.model_copy(update=options)
        with torch.no_grad():
            if (n, divisor) not in outputs:
                outputs[n, divisor] = model(bag(golden, n, divisor, 1024))
            clustering = model.cluster(outputs[n, divisor], torch.tensor(int(label[1:])))
        if what == "loss":
            agree(clustering.loss, expected, key, is_exact)
        else:
            found = clustering.predictions if what == "preds" else clustering.labels
            np.testing.assert_array_equal(found.numpy(), expected, err_msg=key)
        compared += 1
    assert compared >= 24


def test_transmil_baseline_class(golden):
    """Padding before the class token, with the same weights (float32 alone was handed out)."""
    base = load(golden, "mhim_v1_transmil_full_random_f16", False)
    model = models.build(base.config.model_copy(update={"padding": "class"}), 1024, 2).eval()
    model.load_state_dict(base.state_dict())
    quantities = {"transmil_class_logits": TRANSMIL["logits"]}
    assert compare(golden, model, "transmil_full", quantities, False, 1e-9) >= 1


def small_transmil(golden: Path, is_exact: bool) -> MILModel:
    """The width-64 encoder; projection and classifier stay random and are not read."""
    layout = next(layout for layout in LAYOUTS if "TransMIL" in layout.title)
    stem = "online_encoder."
    names = {theirs.removeprefix(stem): ours for theirs, ours in layout.names({}).items() if theirs.startswith(stem)}
    tensors = load_file(golden / "checkpoints" / "transmil_small64_encoder_random.safetensors")
    model = models.build(models.parse({"name": "transmil", "dim": 64}), 10, 2)
    state = model.state_dict()
    state |= {names[key]: value.reshape(state[names[key]].shape) for key, value in tensors.items()}
    model.load_state_dict(state)
    return (model.double() if is_exact else model).eval()


@pytest.mark.parametrize("is_exact", EXACT)
def test_small_transmil_encoder(golden, is_exact):
    """Sizes around squares, below 7 x 7, and an exact multiple of the landmarks; PPEG alone as well."""
    model = small_transmil(golden, is_exact)
    inputs = arrays(golden, "transmil_small64", False)
    compared = 0
    for key, expected in arrays(golden, "transmil_small64", is_exact).items():
        name, n, _ = of_bag(key)
        if name == "x":
            continue
        tokens = torch.from_numpy(inputs[f"x_N{n}"]).to(next(model.parameters()).dtype)
        with torch.no_grad():
            found = model.position(tokens) if name == "ppeg" else TRANSMIL[name](model, model.aggregate(tokens))
        agree(found, expected, key, is_exact)
        compared += 1
    assert compared >= 20


@pytest.mark.parametrize("is_exact", EXACT)
def test_class_aware_scores_of_mhim_v2(golden, is_exact):
    """AB-MIL and TransMIL: largest class probability; DSMIL: largest instance score, or largest attention."""
    files = {
        "abmil": "mhim_v1_abmil_c16_fold0_seed2021",
        "dsmil": "mhim_v1_dsmil_c16_fold0_seed2021",
        "transmil": "mhim_v1_transmil_full_random_f16",
    }
    loaded = {name: load(golden, file, is_exact) for name, file in files.items()}
    compared = 0
    for key, expected in arrays(golden, "mhim_v2", is_exact).items():
        if "_score" not in key or key.startswith("tiny"):
            continue
        name, n, divisor = of_bag(key)
        model = loaded[name.split("_")[0]]
        divisor = 512 if name.startswith("dsmil") else divisor
        with torch.no_grad():
            output = model(bag(golden, n, divisor, 1024))
        found = output.attention.amax(dim=0) if name.endswith("attn2score0") else output.class_salience
        agree(found, expected, key, is_exact)
        compared += 1
    assert compared >= 3


def test_tiny_class_aware_score(golden):
    """The example small enough to do by hand: softmax over classes of W (a_i z_i), then the maximum."""
    tiny = {
        key[5:]: torch.from_numpy(value) for key, value in arrays(golden, "mhim_v2", False).items() if "tiny" in key
    }
    model = models.build(models.parse({"name": "abmil", "dim": 6}), 6, 3).eval()
    model.classifier.weight.data, model.classifier.bias.data = tiny["W"], tiny["b"]

    class GivenAttention(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tiny["attn"].log()[None]

    model.attention = GivenAttention()
    agree(model.aggregate(tiny["feat"]).class_salience, tiny["score"].numpy(), "tiny", False)


@pytest.mark.parametrize("distillation", ["MaxS", "MaxMinS", "AFS"])
def test_dtfd(golden, distillation):
    """Both tiers on the given cut of 23 instances into 4 pseudo-bags."""
    expected = arrays(golden, "dtfd_small", False)
    order = torch.from_numpy(expected["perm"])
    base = load(golden, "dtfd_small_random", False)
    options = {"split": "contiguous", "distillation": distillation.lower()}
    model = models.build(base.config.model_copy(update=options), base.in_dim, 2).eval()
    model.load_state_dict(base.state_dict())
    with torch.no_grad():
        output = model(torch.from_numpy(expected["x"])[order])
        agree(model.project(torch.from_numpy(expected["x"])), expected["mid"], "mid", False)
    agree(output.extras["attention_logits"][0][order.argsort()], expected["attn_raw"], "attn_raw", False)
    agree(output.mask_scores[0], F.softmax(torch.from_numpy(expected["attn_raw"])[order], dim=0).numpy(), "mask", False)
    for group, found in enumerate(output.extras["pseudo_bags"]):
        np.testing.assert_array_equal(order[found.index].numpy(), expected[f"group{group}_index"])
        agree(found.attention, expected[f"group{group}_attn"], "attention", False)
        agree(found.probabilities, expected[f"group{group}_patch_prob"], "probability", False)
        agree(output.instance_probabilities[found.index], expected[f"group{group}_patch_prob"], "probability", False)
        agree(found.logits, expected[f"group{group}_sub_logits"], "logits", False)
        ranked = found.probabilities[:, 1].argsort(descending=True)
        np.testing.assert_array_equal(ranked.numpy(), expected[f"group{group}_order"])
    if f"{distillation}_bag_logits" not in expected:
        pytest.skip(f"no second tier for {distillation} was handed out")
    agree(output.extras["pseudo_features"], expected[f"{distillation}_pseudo_feats"], "features", False)
    agree(output.logits, expected[f"{distillation}_bag_logits"], "logits", False)
