"""Published checkpoints: recognised by their keys, loaded strictly; load_weights from wherever they lie.

The files are made here, from random weights under the published names; the trained ones are used where the
shared folder has them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import mhim
from mhim.checkpoint import load_model, read_metadata, save_model
from mhim.cli import app
from mhim.errors import ArtefactError, CheckpointError
from mhim.models import MILModel, models
from mhim.weights import LAYOUTS, import_checkpoint, import_weights

KINDS = {
    "MHIM v1 AB-MIL with plain attention": ({"name": "abmil", "dim": 12, "attention_dim": 5}, 7, 3),
    "MHIM v1 AB-MIL with gated attention": ({"name": "abmil", "dim": 12, "attention_dim": 5, "gated": True}, 7, 2),
    "MHIM v1 DSMIL": ({"name": "dsmil", "dim": 12, "query_dim": 5}, 7, 3),
    "MHIM v1 TransMIL": ({"name": "transmil", "dim": 12, "heads": 2, "kernel": 5}, 7, 4),
    "DSMIL-repository aggregator": (
        {
            "name": "dsmil",
            "dim": 7,
            "query_dim": 5,
            "projection": "none",
            "value": "identity",
            "output": "sigmoid",
            "predictor": False,
        },
        7,
        1,
    ),
    "CLAM-SB": ({"name": "clam-sb", "dim": 12, "attention_dim": 5}, 7, 3),
    "DTFD-MIL": ({"name": "dtfd", "dim": 12, "attention_dim": 5}, 7, 3),
}
IN_SHARED = {
    "mhim_v1_abmil_c16_fold0_seed2021": ("MHIM v1 AB-MIL with plain attention", "abmil", 1024, 2, 591_490),
    "mhim_v1_abmil_gated_tcga_fold0_seed2021": ("MHIM v1 AB-MIL with gated attention", "abmil", 1024, 2, 657_026),
    "mhim_v1_dsmil_c16_fold0_seed2021": ("MHIM v1 DSMIL", "dsmil", 1024, 2, 873_734),
    "mhim_v1_transmil_full_random_f16": ("MHIM v1 TransMIL", "transmil", 1024, 2, 2_672_146),
    "dsmil_repo_c16_aggregator": ("DSMIL-repository aggregator", "dsmil", 512, 1, 83_202),
    "dsmil_repo_tcga_aggregator": ("DSMIL-repository aggregator", "dsmil", 512, 2, 85_252),
    "clam_repo_demo_clam_sb_s0": ("CLAM-SB", "clam-sb", 1024, 2, 790_791),
    "dtfd_small_random": ("DTFD-MIL", "dtfd", 64, 2, 4_326),
}


def make(title: str) -> tuple[MILModel, dict[str, torch.Tensor]]:
    """A random model and its tensors under the published names."""
    options, in_dim, n_classes = KINDS[title]
    model = models.build(models.parse(options), in_dim, n_classes).eval()
    state = model.state_dict()
    layout = next(layout for layout in LAYOUTS if layout.title == title)
    hints = {layout.signature: torch.zeros(0)}
    if title == "CLAM-SB":
        hints["classifiers.weight"] = state["classifier.weight"]
    tensors = {theirs: state[ours] for theirs, ours in layout.names(hints).items()}
    return model, {
        key: value[None] if key.endswith("cls_token") else value.contiguous() for key, value in tensors.items()
    }


def store(folder: Path, tensors: dict[str, torch.Tensor], suffix: str = ".safetensors") -> Path:
    path = folder / f"checkpoint{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def same(found: MILModel, expected: MILModel) -> bool:
    state = found.state_dict()
    return all(torch.equal(value, state[key]) for key, value in expected.state_dict().items())


def test_every_layout_is_tried():
    assert {layout.title for layout in LAYOUTS} == KINDS.keys()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("title", KINDS)
def test_sizes_are_read_off_and_tensors_kept(tmp_path, title, suffix):
    model, tensors = make(title)
    found = import_checkpoint(store(tmp_path, tensors, suffix))
    assert found.title == title
    assert found.model.config == model.config
    assert (found.model.in_dim, found.model.n_classes) == (model.in_dim, model.n_classes)
    assert not found.model.training
    assert same(found.model, model)


@pytest.mark.parametrize("container", ["model", "state_dict"])
def test_nested_files_of_training_programs(tmp_path, container):
    model, tensors = make("MHIM v1 DSMIL")
    path = tmp_path / "fold_0_model_best_auc.pt"
    torch.save({container: tensors, "epoch": 3, "early_stop": {"best": 0.9}}, path)
    assert same(import_checkpoint(path).model, model)


def test_data_parallel_names_and_the_loss_buffer_of_old_clam(tmp_path):
    model, tensors = make("CLAM-SB")
    old = {key.replace("attention_net.", "attention_net.module."): value for key, value in tensors.items()}
    old["instance_loss_fn.labels"] = torch.arange(2)
    assert same(import_checkpoint(store(tmp_path, old)).model, model)


def test_biases_in_the_attention_are_read_off(tmp_path):
    options = {"name": "abmil", "dim": 12, "attention_dim": 5, "attention_bias": True}
    model = models.build(models.parse(options), 7, 2)
    _, tensors = make("MHIM v1 AB-MIL with plain attention")
    state, stem = model.state_dict(), "online_encoder.attention.attention"
    ours = {"patch_to_emb.0": "projection.0", "predictor": "classifier"}
    ours |= {f"{stem}.0": "attention.value", f"{stem}.2": "attention.score"}
    tensors = {f"{a}.{kind}": state[f"{b}.{kind}"] for a, b in ours.items() for kind in ("weight", "bias")}
    found = import_checkpoint(store(tmp_path, tensors)).model
    assert found.config.attention_bias
    assert same(found, model)


def test_half_precision_weights_become_float32(tmp_path):
    _, tensors = make("MHIM v1 TransMIL")
    found = import_checkpoint(store(tmp_path, {key: value.half() for key, value in tensors.items()})).model
    assert {value.dtype for value in found.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("title", KINDS)
def test_a_partial_file_is_refused_with_its_missing_tensors(tmp_path, title):
    _, tensors = make(title)
    for key in tensors:
        rest = {name: value for name, value in tensors.items() if name != key}
        if title == "CLAM-SB" and key.startswith("classifiers"):
            continue
        with pytest.raises(CheckpointError, match=rf"missing {key.replace('.', '[.]')}(;| \(|$|,)"):
            import_checkpoint(store(tmp_path, rest))


def test_a_surplus_tensor_is_refused_by_name(tmp_path):
    _, tensors = make("MHIM v1 DSMIL")
    with pytest.raises(CheckpointError, match="unexpected merge.global_q"):
        import_checkpoint(store(tmp_path, {**tensors, "merge.global_q": torch.zeros(2)}))


def test_an_unknown_file_lists_both_sides_and_the_known_kinds(tmp_path):
    path = store(tmp_path, {"encoder.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="missing .*unexpected encoder.weight.*known: MHIM v1 AB-MIL"):
        import_checkpoint(path)


def test_an_encoder_without_its_ends_is_compared_with_the_nearest_kind(tmp_path):
    _, tensors = make("MHIM v1 TransMIL")
    stem = "online_encoder."
    part = {key.removeprefix(stem): value for key, value in tensors.items() if key.startswith(stem)}
    with pytest.raises(CheckpointError, match="compared with MHIM v1 TransMIL: missing .*unexpected cls_token"):
        import_checkpoint(store(tmp_path, part))


def test_a_wrong_shape_is_refused(tmp_path):
    _, tensors = make("MHIM v1 AB-MIL with plain attention")
    with pytest.raises(CheckpointError, match=r"projection.0.bias has shape \(3,\), expected \(12,\)"):
        import_checkpoint(store(tmp_path, {**tensors, "patch_to_emb.0.bias": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match="no known checkpoint has"):
        import_checkpoint(store(tmp_path, {**tensors, "online_encoder.attention.attention.0.weight": torch.zeros(3)}))


@pytest.mark.parametrize("content", [b"", b"PK nothing", b"\x80\x04not a pickle"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_rubbish_is_refused_in_one_line(tmp_path, content, suffix):
    path = tmp_path / f"rubbish{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable file") as caught:
        import_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_files_that_hold_something_else(tmp_path):
    path = tmp_path / "list.pt"
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="no named tensors"):
        import_checkpoint(path)
    torch.save({"weight": torch.zeros(2), "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="unexpected epoch"):
        import_checkpoint(path)
    with pytest.raises(CheckpointError, match="no such file"):
        import_checkpoint(tmp_path / "nothing.pt")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was_here",))

    path = tmp_path / "evil.pt"
    torch.save({"model": Evil()}, path)
    with pytest.raises(CheckpointError, match="plain tensors"):
        import_checkpoint(path)
    assert not (tmp_path / "was_here").exists()


class TestLoadWeights:
    """One call for every place."""

    @pytest.fixture
    def model(self) -> MILModel:
        return models.build(models.parse({"name": "dsmil", "dim": 8}), 5, 2).eval()

    def test_a_published_checkpoint(self, tmp_path):
        model, tensors = make("CLAM-SB")
        assert same(mhim.load_weights(str(store(tmp_path, tensors))), model)

    def test_a_model_file_and_its_folder(self, tmp_path, model):
        save_model(tmp_path / "model.safetensors", model, ["a", "b"])
        assert same(mhim.load_weights(tmp_path / "model.safetensors"), model)
        assert same(mhim.load_weights(tmp_path), model)

    def test_a_run_of_one_fold(self, tmp_path, model):
        save_model(tmp_path / "fold_0" / "model.safetensors", model, ["a", "b"])
        assert same(mhim.load_weights(tmp_path), model)

    def test_a_run_of_several_folds_needs_a_choice(self, tmp_path, model):
        other = models.build(models.parse("abmil"), 5, 2)
        save_model(tmp_path / "fold_0" / "model.safetensors", model, ["a", "b"])
        save_model(tmp_path / "fold_1" / "model.safetensors", other, ["a", "b"])
        with pytest.raises(CheckpointError, match="several folds .fold_0, fold_1."):
            mhim.load_weights(tmp_path)
        assert same(mhim.load_weights(tmp_path, fold=1), other)
        with pytest.raises(CheckpointError, match="no fold 2"):
            mhim.load_weights(tmp_path, fold=2)
        with pytest.raises(CheckpointError, match="this is one file"):
            mhim.load_weights(tmp_path / "fold_0" / "model.safetensors", fold=0)

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(CheckpointError, match="neither model.safetensors nor"):
            mhim.load_weights(tmp_path)

    def test_importing_mhim_does_not_import_torch(self):
        code = "import sys, mhim, mhim.cli; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = mhim.nothing


class TestModelFile:
    """The project's own format."""

    @pytest.fixture
    def path(self, tmp_path) -> Path:
        path = tmp_path / "model.safetensors"
        save_model(path, models.build(models.parse({"name": "abmil", "dim": 8}), 5, 2), ["a", "b"], {"fold": "3"})
        return path

    def test_metadata(self, path):
        metadata = read_metadata(path)
        assert (metadata["in_dim"], metadata["n_classes"], metadata["classes"]) == (5, 2, ["a", "b"])
        assert metadata["model"]["name"] == "abmil"
        assert metadata["fold"] == "3"

    def test_class_names_must_match_the_outputs(self, tmp_path):
        model = models.build(models.parse("abmil"), 5, 3)
        with pytest.raises(CheckpointError, match="2 class names for a model of 3 outputs"):
            save_model(tmp_path / "m.safetensors", model, ["a", "b"])
        with pytest.raises(CheckpointError, match="format's own"):
            save_model(tmp_path / "m.safetensors", model, ["a", "b", "c"], {"in_dim": "4"})
        assert list(tmp_path.iterdir()) == []

    def test_double_precision_is_kept(self, tmp_path):
        model = models.build(models.parse({"name": "mean", "dim": 8}), 5, 2).double()
        save_model(tmp_path / "m.safetensors", model, ["a", "b"])
        assert next(load_model(tmp_path / "m.safetensors").parameters()).dtype == torch.float64

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model": '{"name": "mine"}'}, "unknown model 'mine'.*--plugin"),
            ({"model": '{"name": "abmil", "width": 3}'}, "unknown key 'width'"),
            ({"model": '{"name": "abmil", "dim": 8, "gated": true}'}, "missing attention.gate.weight"),
            ({"in_dim": "6"}, r"projection.0.weight has shape \(8, 5\), expected \(8, 6\)"),
            ({"classes": "nothing"}, "damaged metadata"),
            ({"format": "other"}, "import-weights"),
        ],
    )
    def test_a_file_that_does_not_fit_is_refused(self, path, change, message):
        from safetensors import safe_open
        from safetensors.torch import load_file

        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata())
        save_file(load_file(path), path, {**metadata, **change})
        with pytest.raises(CheckpointError, match=message):
            load_model(path)


class TestImportWeights:
    """The call and the verb."""

    def test_what_is_written_reads_back(self, tmp_path):
        model, tensors = make("MHIM v1 AB-MIL with gated attention")
        import_weights(store(tmp_path, tensors), tmp_path / "out", ["normal", "tumour"])
        assert same(mhim.load_weights(tmp_path / "out"), model)
        described = json.loads((tmp_path / "out" / "model.json").read_text())
        assert described == read_metadata(tmp_path / "out" / "model.safetensors")
        assert described["classes"] == ["normal", "tumour"]
        assert described["source_file"] == "checkpoint.safetensors"

    def test_a_model_of_another_origin_is_not_overwritten_unasked(self, tmp_path):
        _, tensors = make("MHIM v1 DSMIL")
        first = store(tmp_path, tensors)
        import_weights(first, tmp_path / "out")
        import_weights(first, tmp_path / "out")
        other, tensors = make("CLAM-SB")
        second = store(tmp_path, tensors)
        with pytest.raises(ArtefactError, match="another model"):
            import_weights(second, tmp_path / "out")
        import_weights(second, tmp_path / "out", overwrite=True)
        assert same(mhim.load_weights(tmp_path / "out"), other)

    def test_verb_says_in_one_line_what_it_found(self, tmp_path):
        _, tensors = make("DSMIL-repository aggregator")
        result = CliRunner().invoke(app, ["import-weights", str(store(tmp_path, tensors)), "-o", str(tmp_path / "out")])
        assert result.exit_code == 0
        (line,) = result.stdout.splitlines()
        assert line.startswith("DSMIL-repository aggregator: model 'dsmil'")
        assert "features 7 wide, 1 output" in line

    def test_verb_refuses_a_wrong_number_of_class_names(self, tmp_path):
        _, tensors = make("MHIM v1 DSMIL")
        arguments = ["import-weights", str(store(tmp_path, tensors)), "-o", str(tmp_path / "out"), "--classes", "a,b"]
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, CheckpointError)
        assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("name", IN_SHARED)
def test_reference_checkpoints(shared, tmp_path, name):
    """The files themselves, from both containers, and through our own format."""
    from safetensors.torch import load_file

    title, model, in_dim, n_classes, count = IN_SHARED[name]
    path = shared / "golden" / "checkpoints" / f"{name}.safetensors"
    found = import_weights(path, tmp_path / "out")
    assert (found.title, found.model.config.name) == (title, model)
    assert (found.model.in_dim, found.model.n_classes) == (in_dim, n_classes)
    assert f"{count:,} numbers" in found.describe()
    torch.save(load_file(path), tmp_path / "same.pt")
    assert same(import_checkpoint(tmp_path / "same.pt").model, found.model)
    assert same(mhim.load_weights(tmp_path / "out"), found.model)


@pytest.mark.parametrize("name", ["mhim_v2_merge_small64_random", "transmil_small64_encoder_random"])
def test_reference_parts_that_are_no_slide_model(shared, name):
    with pytest.raises(CheckpointError, match="missing .*unexpected"):
        import_checkpoint(shared / "golden" / "checkpoints" / f"{name}.safetensors")
