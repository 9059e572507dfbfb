"""Mask sets equal to those of the reference program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mhim.masks import masks
from mhim.masks.salience import rank_instances


def cases(shared: Path) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    outputs = shared / "golden" / "outputs"
    return json.loads((outputs / "mask_selections.json").read_text()), dict(np.load(outputs / "mask_selections.npz"))


def run(case: dict[str, Any], attention: np.ndarray):
    high = case["mask_ratio_h"] if case["schedule_value"] is None else case["schedule_value"]
    config = {
        "name": "lr-ham",
        "mask_ratio_high": high,
        "high_candidate_factor": case["mask_ratio_hr"],
        "mask_ratio_low": case["mask_ratio_l"],
        "mask_ratio_random": case["mask_ratio"],
        "high_decay": "none",
        "fusion": case["fusion"] or "vote",
    }
    scores = torch.from_numpy(np.atleast_2d(attention))
    return masks.build(masks.parse(config)).select(scores, 0.0, torch.Generator().manual_seed(0))


def is_legal(case: dict[str, Any]) -> bool:
    """Not: settings that ours refuses, and bags of 1 to 3 where ours keeps what the program masks away."""
    edge = case["name"].startswith("edge_") or case["name"] == "none"
    return not edge and case["mask_ratio_h"] <= case["mask_ratio_hr"] and case["len_keep"] > 0


def test_deterministic_single_head_sets_are_equal(shared: Path) -> None:
    records, arrays = cases(shared)
    chosen = [c for c in records if c["heads"] == 1 and c["torch_seed"] is None and not c["error"] and is_legal(c)]
    assert len(chosen) == 7
    for case in chosen:
        masked = np.setdiff1d(np.arange(case["N"]), run(case, arrays[case["attn"]]).keep_index.numpy())
        assert np.array_equal(masked, arrays[f"{case['name']}/masked_sorted"]), case["name"]


def test_random_cases_have_the_same_counts_and_candidates(shared: Path) -> None:
    records, arrays = cases(shared)
    chosen = [c for c in records if c["torch_seed"] is not None and c["heads"] == 1 and not c["error"] and is_legal(c)]
    assert len(chosen) >= 4
    for case in chosen:
        attention, selection = arrays[case["attn"]], run(case, arrays[case["attn"]])
        order = np.argsort(-attention, kind="stable")
        candidates = int(np.ceil(case["N"] * case["mask_ratio_h"] / case["mask_ratio_hr"]))
        assert set(selection.high.nonzero()[:, 0].tolist()) <= set(order[:candidates].tolist())
        low = int(np.ceil(case["N"] * case["mask_ratio_l"]))
        assert set(selection.low.nonzero()[:, 0].tolist()) == set(order[case["N"] - low :].tolist())
        assert int(selection.random.sum()) == int(np.ceil(case["N"] * case["mask_ratio"]))
        if case["mask_ratio"] == 0:
            assert len(selection.keep_index) == case["len_keep"], case["name"]


def test_votes_of_eight_heads(shared: Path) -> None:
    records, arrays = cases(shared)
    by_name = {case["name"]: case for case in records}
    attention = torch.from_numpy(arrays["mh_attn_N500"])
    for side, count, name in (("high", 15, "mh_vote_ham_h03_N500"), ("low", 400, "mh_vote_low_l80_N500")):
        masked = set(rank_instances(attention, count, side == "high", "vote")[:count].tolist())
        must, pool = set(arrays[f"mh_must_{side}_N500"].tolist()), set(arrays[f"mh_tie_{side}_N500"].tolist())
        assert must <= masked <= must | pool
        assert len(run(by_name[name], arrays["mh_attn_N500"]).keep_index) == by_name[name]["len_keep"]
        votes = arrays[f"mh_votes_{side}_N500"]
        assert votes[sorted(masked)].min() >= np.delete(votes, sorted(masked)).max()
    both = run(by_name["mh_vote_lham_l80_h03_N500"], arrays["mh_attn_N500"])
    masked = set(range(500)) - set(both.keep_index.tolist())
    must, pool = (
        set(np.concatenate([arrays[f"mh_{kind}_{side}_N500"] for side in ("high", "low")]).tolist())
        for kind in ("must", "tie")
    )
    assert must <= masked <= must | pool
    assert (int(both.high.sum()), int(both.low.sum())) == (15, 400)
    same = by_name["mh_vote_same_rank_lham_l80_h03_N500"]
    masked = np.setdiff1d(np.arange(500), run(same, arrays[same["attn"]]).keep_index.numpy())
    assert np.array_equal(masked, arrays[f"{same['name']}/masked_sorted"])


def test_mean_fusion_of_eight_heads(shared: Path) -> None:
    records, arrays = cases(shared)
    case = next(c for c in records if c["name"] == "mh_mean_ham_h03_N500")
    masked = np.setdiff1d(np.arange(500), run(case, arrays[case["attn"]]).keep_index.numpy())
    assert np.array_equal(masked, arrays[f"{case['name']}/masked_sorted"])


@pytest.mark.parametrize("name", ["edge_N1_ham", "edge_N3_rham", "edge_N3_lham_l80_h03"])
def test_edge_cases_keep_something(shared: Path, name: str) -> None:
    records, arrays = cases(shared)
    case = next(c for c in records if c["name"] == name)
    assert len(run(case, arrays[case["attn"]]).keep_index) >= 1


def test_zero_ratios_mask_nothing(shared: Path) -> None:
    records, arrays = cases(shared)
    case = next(c for c in records if c["name"] == "none")
    assert len(run(case, arrays[case["attn"]]).keep_index) == case["len_keep"] == case["N"]
