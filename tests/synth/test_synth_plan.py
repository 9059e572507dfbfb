from collections import Counter

import numpy as np
import pytest

from mhim.config import validate
from mhim.errors import ConfigError
from mhim.synth import SynthConfig
from mhim.synth.plan import plan_cohort


def test_default_plan_obeys_the_specification():
    plans = plan_cohort(SynthConfig())
    assert len(plans) == 60
    cases = {plan.case_id: plan for plan in plans}
    assert len(cases) == 40
    assert set(Counter(plan.case_id for plan in plans).values()) == {1, 2}
    assert Counter(plan.label for plan in cases.values()) == {"normal": 20, "tumour": 20}
    shares = np.array([plan.tumour_share for plan in plans if plan.label == "tumour"])
    assert np.mean(shares < 0.05) > 0.7
    assert np.mean(shares < 0.01) > 0.1
    assert shares.min() >= 0.005
    assert shares.max() <= 0.09


@pytest.mark.parametrize("seed", range(5))
def test_scanner_and_label_are_independent_and_constant_within_a_case(seed):
    plans = plan_cohort(SynthConfig(n_slides=31, n_cases=19, seed=seed))
    per_case = {(plan.case_id, plan.label, plan.scanner) for plan in plans}
    assert len(per_case) == 19
    for label in ("normal", "tumour"):
        counts = Counter(scanner for _, of, scanner in per_case if of == label)
        assert abs(counts["A"] - counts["B"]) <= 1


def test_kinds_are_shared_out_as_configured():
    config = SynthConfig()
    plans = [plan for plan in plan_cohort(config) if plan.kinds]
    counts = Counter(plan.kinds for plan in plans)
    assert set(counts) == {("subtle",), ("salient", "subtle")}
    assert abs(counts["subtle",] - config.subtle_only_fraction * len(plans)) <= 1


def test_plan_depends_on_the_seed_only():
    assert plan_cohort(SynthConfig(seed=3)) == plan_cohort(SynthConfig(seed=3))
    assert plan_cohort(SynthConfig(seed=3)) != plan_cohort(SynthConfig(seed=4))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_slides": 3}, "n_slides 3 is less than n_cases 40"),
        ({"tumour_fraction_min": 0.2, "tumour_fraction_max": 0.1}, "tumour_fraction_min 0.2 is above"),
        ({"jpeg_quality": 0}, "jpeg_quality"),
        ({"widht_um": 800}, "unknown key 'widht_um'"),
    ],
)
def test_a_bad_configuration_is_one_line(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        validate(SynthConfig, values, "mhim synth")
    assert "\n" not in str(caught.value)
