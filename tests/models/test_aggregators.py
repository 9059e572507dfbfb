"""What is particular to single aggregators: counts, quirks, edge cases, losses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mhim.checkpoint import load_model, save_model
from mhim.errors import ConfigError, FeatureError
from mhim.models import MILOutput, count_parameters, models
from mhim.models.clam import smooth_svm_loss
from mhim.models.nystrom import NystromAttention
from mhim.models.transmil import PositionEncoding, wrap_to_square


def build(n_classes: int = 2, in_dim: int = 10, seed: int = 0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build(models.parse(options), in_dim, n_classes).double().eval()


def bag(n: int, dim: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"name": "abmil"}, 591_490),
        ({"name": "abmil", "gated": True}, 657_026),
        ({"name": "abmil", "gated": True, "attention_bias": True}, 657_283),
        ({"name": "abmil", "attention_bias": True}, 591_619),
        ({"name": "dsmil"}, 873_734),
        ({"name": "dsmil", "predictor": False}, 873_734 - 1_026),
        ({"name": "transmil"}, 2_672_146),
        ({"name": "transmil", "padding": "class"}, 2_672_146),
        ({"name": "clam-mb"}, 791_048),
        ({"name": "clam-sb"}, 790_791),
        ({"name": "dtfd"}, 789_254),
        ({"name": "max"}, 525_826),
        ({"name": "mean"}, 525_826),
    ],
)
def test_parameter_counts_of_the_reference_programs(options, count):
    assert count_parameters(models.build(models.parse(options), 1024, 2)) == count


def test_clam_mb_without_its_instance_classifiers_is_the_orals_789k():
    model = models.build(models.parse("clam-mb"), 1024, 2)
    assert count_parameters(model) - count_parameters(model.instance_classifiers) == 788_996


def test_contributions_and_bias_come_together():
    with pytest.raises(ValueError, match="together"):
        MILOutput(*[torch.zeros(2)] * 2, None, None, torch.zeros(3), contributions=torch.zeros(4, 2))


def test_a_result_without_scores_cannot_be_ranked():
    output = MILOutput(*[torch.zeros(2)] * 2, None, None, torch.zeros(3))
    with pytest.raises(ValueError, match="neither mask_scores nor attention"):
        _ = output.salience
    with pytest.raises(ValueError, match="no instance probabilities"):
        _ = output.class_salience


def test_abmil_class_salience_is_the_largest_tumour_probability():
    output = build(name="abmil", n_classes=3)(bag(20))
    assert_close(output.class_salience[0], output.contributions.softmax(dim=-1).amax(dim=-1))


class TestDSMIL:
    """Two streams, softmax and sigmoid."""

    def test_the_unused_predictor_is_frozen_and_changes_nothing(self):
        model = build(name="dsmil")
        before = model(bag(9))
        model.predictor.weight.data.fill_(1e6)
        assert torch.equal(model(bag(9)).logits, before.logits)
        assert not model.predictor.weight.requires_grad

    def test_probabilities_are_the_mean_of_both_streams(self):
        output = build(name="dsmil", n_classes=3)(bag(9))
        streams = torch.stack([output.logits, output.extras["max_logits"]])
        assert_close(output.probabilities, streams.softmax(dim=-1).mean(dim=0))
        assert_close(output.extras["max_logits"], output.instance_scores.amax(dim=0))

    def test_mhim_v2_averages_logits_and_has_one_loss(self):
        model = build(name="dsmil", average="logits")
        output = model(bag(9))
        mean = (output.logits + output.extras["max_logits"]) / 2
        assert_close(output.probabilities, mean.softmax(dim=-1))
        assert_close(
            sum(model.losses(output, torch.tensor(1)).values()), F.cross_entropy(mean[None], torch.tensor([1]))
        )

    def test_repository_form_takes_features_as_they_are(self):
        model = build(name="dsmil", projection="none", value="identity", output="sigmoid", predictor=False, query_dim=4)
        assert torch.equal(model.project(bag(5)), bag(5))
        output = model(bag(5))
        assert_close(output.bag_embedding, output.attention @ bag(5))
        assert_close(output.probabilities, (output.logits.sigmoid() + output.extras["max_logits"].sigmoid()) / 2)
        target = torch.tensor([0.0, 1.0], dtype=torch.float64)
        expected = [
            F.binary_cross_entropy_with_logits(x, target) / 2 for x in (output.logits, output.extras["max_logits"])
        ]
        assert_close(sum(model.losses(output, torch.tensor(1)).values()), sum(expected))

    def test_one_output_is_a_single_probability(self):
        model = build(name="dsmil", output="sigmoid", n_classes=1)
        output = model(bag(5))
        assert output.logits.shape == (1,)
        assert_close(output.instance_probabilities, output.contributions.sigmoid())
        positive, negative = (sum(model.losses(output, torch.tensor(y)).values()) for y in (1, 0))
        mean = (output.logits + output.extras["max_logits"])[0] / 2
        assert_close(negative - positive, mean)
        with pytest.raises(ConfigError, match="expected 0 or 1"):
            model.losses(output, torch.tensor(2))

    def test_one_class_needs_sigmoid(self):
        with pytest.raises(ConfigError, match="at least 2"):
            build(name="dsmil", n_classes=1)


class TestCLAM:
    """Instance clustering."""

    @pytest.mark.parametrize(("n", "size"), [(1, 0), (2, 1), (7, 3), (16, 8), (40, 8)])
    def test_no_instance_is_positive_and_negative(self, n, size):
        model = build(name="clam-sb")
        clustering = model.cluster(model(bag(n)), torch.tensor(1))
        assert clustering.labels.tolist() == [1] * size + [0] * size

    def test_subtyping_adds_negatives_of_the_other_classes(self):
        model = build(name="clam-mb", n_classes=3, subtyping=True)
        clustering = model.cluster(model(bag(40)), torch.tensor(1))
        assert clustering.labels.tolist() == [0] * 8 + [1] * 8 + [0] * 8 + [0] * 8

    def test_multiple_branches_rank_by_their_own_row(self):
        model = build(name="clam-mb", instance_loss="cross-entropy")
        output = model(bag(30))
        for label in (0, 1):
            order = output.attention[label].argsort(descending=True)
            chosen = torch.cat([order[:8], order[-8:]])
            scores = model.instance_classifiers[label](output.extras["tokens_at"](chosen))
            expected = F.cross_entropy(scores, torch.tensor([1] * 8 + [0] * 8))
            assert_close(model.cluster(output, torch.tensor(label)).loss, expected)

    def test_weights_of_the_two_losses(self):
        model = build(name="clam-sb", bag_weight=0.9)
        output = model(bag(30))
        terms = model.losses(output, torch.tensor(0))
        assert_close(terms["instance"], 0.1 * model.cluster(output, torch.tensor(0)).loss)
        assert_close(terms["classification"], 0.9 * F.cross_entropy(output.logits[None], torch.tensor([0])))

    def test_smooth_svm_loss_by_hand(self):
        scores = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
        right, wrong = (smooth_svm_loss(scores, torch.tensor([y])).item() for y in (1, 0))
        assert right == pytest.approx(math.log(1 + math.exp(1 - 2)))
        assert wrong == pytest.approx(math.log(1 + math.exp(1 + 2)))

    def test_clearly_apart_the_loss_is_the_plain_hinge(self):
        scores = torch.tensor([[0.0, 7.0]], dtype=torch.float64)
        assert smooth_svm_loss(scores, torch.tensor([1])).item() == 0.0
        assert smooth_svm_loss(scores, torch.tensor([0])).item() == 8.0
        near = torch.tensor([[0.0, 6.9]], dtype=torch.float64)
        assert smooth_svm_loss(near, torch.tensor([1])).item() > 0


class TestDTFD:
    """Pseudo-bags and two tiers."""

    def test_the_second_tier_sends_no_gradient_to_the_first(self):
        model = build(name="dtfd")
        output = model(bag(20))
        F.cross_entropy(output.logits[None], torch.tensor([1])).backward()
        reached = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None}
        assert reached == {"tier2"}

    @pytest.mark.parametrize("split", ["interleaved", "contiguous"])
    @pytest.mark.parametrize("n", [1, 3, 4, 23])
    def test_pseudo_bags_are_a_near_equal_partition(self, n, split):
        bags = build(name="dtfd", split=split)(bag(n)).extras["pseudo_bags"]
        sizes = [len(each.index) for each in bags]
        assert len(bags) == min(4, n)
        assert max(sizes) - min(sizes) <= 1
        assert sorted(torch.cat([each.index for each in bags]).tolist()) == list(range(n))
        if split == "contiguous":
            expected = np.array_split(np.arange(n), min(4, n))
            assert all(np.array_equal(each.index, other) for each, other in zip(bags, expected, strict=True))

    @pytest.mark.parametrize(("distillation", "count"), [("maxs", 8), ("maxmins", 16), ("mas", 8), ("afs", 4)])
    def test_what_is_handed_up(self, distillation, count):
        model = build(name="dtfd", distillation=distillation, instances=2)
        output = model(bag(20))
        tokens = model.project(bag(20))
        features = output.extras["pseudo_features"]
        assert len(features) == count
        if distillation != "afs":
            distance = torch.cdist(features, tokens).amin(dim=1)
            assert_close(distance, torch.zeros_like(distance))

    def test_maxmins_of_a_single_instance_hands_it_up_twice(self):
        output = build(name="dtfd", distillation="maxmins")(bag(1))
        assert len(output.extras["pseudo_features"]) == 2
        assert_close(output.attention, torch.ones(1, 1, dtype=torch.float64))

    def test_it_asks_for_shuffled_bags_in_training(self):
        assert build(name="dtfd").shuffles_in_training
        assert not build(name="dtfd", shuffle=False).shuffles_in_training
        assert not build(name="abmil").shuffles_in_training


class TestTransMIL:
    """Paddings, read-outs, and the Nyström parts."""

    @pytest.mark.parametrize("n", [1, 4, 9, 49, 64])
    def test_both_paddings_agree_on_squares_of_side_seven_and_up(self, n):
        """Below 7 x 7 the encoder also re-flows the instances into rows of 7."""
        encoder = build(name="transmil", dim=16, heads=2)
        baseline = build(name="transmil", dim=16, heads=2, padding="class")
        baseline.load_state_dict(encoder.state_dict())
        same = torch.allclose(encoder(bag(n)).logits, baseline(bag(n)).logits, rtol=1e-12)
        assert same == (n == 1 or n >= 49)

    def test_paddings_differ_between_squares(self):
        encoder = build(name="transmil", dim=16, heads=2)
        baseline = build(name="transmil", dim=16, heads=2, padding="class")
        baseline.load_state_dict(encoder.state_dict())
        assert not torch.allclose(encoder(bag(60)).logits, baseline(bag(60)).logits, rtol=1e-3)

    def test_first_padded_row_is_the_class_row_exactly_without_padding(self):
        right = build(name="transmil", dim=16, heads=2)
        wrong = build(name="transmil", dim=16, heads=2, class_row="first-padded")
        assert torch.equal(right(bag(15)).attention, wrong(bag(15)).attention)
        assert not torch.allclose(right(bag(17)).attention, wrong(bag(17)).attention, rtol=1e-2)
        assert torch.equal(right(bag(17)).logits, wrong(bag(17)).logits)

    def test_layer_of_the_attention(self):
        first = build(name="transmil", dim=16)(bag(20))
        last = build(name="transmil", dim=16, attention_layer="last")(bag(20))
        assert torch.equal(first.attention, first.extras["attention_layer1"])
        assert torch.equal(last.attention, first.extras["attention_layer2"])

    def test_attention_is_a_read_out_without_gradient_in_pieces_too(self, monkeypatch):
        model = build(name="transmil", dim=32, landmarks=40)
        whole = model(bag(50))
        monkeypatch.setattr("mhim.kernels.attention._NUMBERS", 1)
        assert_close(model(bag(50)).attention, whole.attention)
        assert not whole.attention.requires_grad
        assert whole.logits.requires_grad

    def test_training_reads_out_only_the_layer_that_is_asked_for(self):
        model = build(name="transmil", dim=16, dropout=0, attention_dropout=0).train()
        output = model(bag(20))
        assert output.extras == {}
        assert_close(output.attention, model.eval()(bag(20)).attention)

    def test_with_a_landmark_per_token_it_is_exact_attention(self):
        """Then both outer softmaxes are the inner one, and A A+ A = A."""
        torch.manual_seed(0)
        attention = NystromAttention(16, 2, landmarks=12, iterations=40, kernel=3, dropout=0.0).double()
        torch.nn.init.zeros_(attention.value_convolution.weight)
        tokens = torch.randn(12, 16, dtype=torch.float64) * 2
        query, key, value = (
            part.unflatten(-1, (2, 8)).transpose(0, 1) for part in attention.to_qkv(tokens).chunk(3, dim=-1)
        )
        weights = (query @ key.mT / math.sqrt(8)).softmax(dim=-1)
        expected = attention.to_out((weights @ value).transpose(0, 1).flatten(1))
        prepared = attention.prepare(tokens, "class-token")
        assert_close(attention.attend(prepared, 12), expected, rtol=1e-6, atol=1e-6)
        assert_close(attention.attend(prepared, 1), expected[:1], rtol=1e-6, atol=1e-6)
        assert_close(prepared.row, weights[:, 0, 1:], rtol=1e-6, atol=1e-6)

    def test_the_merged_convolution_is_the_sum_of_three(self):
        torch.manual_seed(0)
        encoding = PositionEncoding(5, fills_to_seven=False).double()
        tokens = torch.randn(64, 5, dtype=torch.float64)
        image = tokens.T.reshape(1, 5, 8, 8)
        parts = sum(each(image) for each in (encoding.conv7, encoding.conv5, encoding.conv3))
        assert_close(encoding(tokens), (image + parts)[0].flatten(1).T)

    @pytest.mark.parametrize(("n", "cells"), [(1, 1), (2, 4), (4, 4), (5, 9), (17, 25)])
    def test_the_first_instances_fill_the_square(self, n, cells):
        tokens = torch.arange(n, dtype=torch.float32)[:, None]
        assert wrap_to_square(tokens)[:, 0].tolist() == [index % n for index in range(cells)]

    def test_start_of_the_baseline_class(self):
        published = models.build(models.parse({"name": "transmil", "padding": "class"}), 8, 2)
        encoder = models.build(models.parse({"name": "transmil"}), 8, 2)
        assert published.class_token.abs().max() < 1e-4
        assert encoder.class_token.std().item() == pytest.approx(1.0, abs=0.2)
        assert not published.position.conv3.bias.any()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dim": 30}, "dim 30 is not a multiple of heads 8"),
            ({"kernel": 4}, "kernel 4 is even"),
            ({"dim": 1, "heads": 1}, "no half"),
            ({"dropout": 1.0}, "dropout"),
            ({"padding": "none"}, "padding"),
            ({"head": 2}, "unknown key 'head'"),
        ],
    )
    def test_settings_that_cannot_be(self, options, message):
        with pytest.raises(ConfigError, match=message):
            models.parse({"name": "transmil", **options})


class TestPooling:
    """Mean and max."""

    def test_mean_has_the_same_logits_at_both_levels(self):
        outputs = [build(name="mean", level=level)(bag(9)) for level in ("instance", "embedding")]
        assert_close(outputs[0].logits, outputs[1].logits)
        assert_close(outputs[0].instance_scores.mean(dim=0), outputs[0].logits)
        assert_close(outputs[1].instance_scores, outputs[1].contributions)

    def test_max_of_instance_logits(self):
        output = build(name="max", n_classes=3)(bag(9))
        assert_close(output.logits, output.instance_scores.amax(dim=0))
        assert output.attention.argmax(dim=1).tolist() == output.instance_scores.argmax(dim=0).tolist()

    def test_max_of_embeddings_gives_each_dimension_to_its_winner(self):
        model = build(name="max", level="embedding")
        output, tokens = model(bag(9)), model.project(bag(9))
        winners = tokens.argmax(dim=0)
        assert_close(output.bag_embedding, tokens.amax(dim=0))
        for index in range(9):
            own = (winners == index).to(tokens.dtype)
            assert_close(output.contributions[index], model.classifier.weight @ (own * output.bag_embedding))
            assert_close(output.attention[0, index], own.mean())


@pytest.mark.parametrize("name", sorted(models))
def test_standardised_features_give_what_the_raw_model_gives_on_them(name: str, tmp_path: Path) -> None:
    """forward(x) after standardise(m, s) is forward((x - m) / s) before; it survives save and load."""
    torch.manual_seed(0)
    model = models.build(models.parse(name), 8, 2).eval()
    features, mean, scale = torch.randn(30, 8) * 3 + 1, torch.randn(8), torch.rand(8) + 0.5
    with torch.no_grad():
        expected = model((features - mean) / scale).logits
        model.standardise(mean, scale)
        torch.testing.assert_close(model(features).logits, expected)
        save_model(tmp_path / "model.safetensors", model, ["a", "b"])
        assert torch.equal(load_model(tmp_path / "model.safetensors")(features).logits, model(features).logits)


def test_statistics_of_another_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="not 8"):
        models.build(models.parse("abmil"), 8, 2).standardise(torch.zeros(7), torch.ones(7))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused_when_a_model_is_used(value: float) -> None:
    features = torch.ones(5, 8)
    features[3, 2] = value
    model = models.build(models.parse("abmil"), 8, 2).eval()
    with pytest.raises(FeatureError, match="NaN or infinite"):
        model(features)
