"""The CAMELYON16-like simulation on made-up tables and patches, and its layout by the real outlines."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from mhim.bag import load_bag
from mhim.cli import app
from mhim.cohort import read_cohort
from mhim.errors import ArtefactError, CohortError, ConfigError, FeatureError
from mhim.synth.bags import NORMAL, SALIENT, SUBTLE, lay_out, make_features
from mhim.synth.camelyon import bag_path, make_simulation, missing_bags, plan_simulation
from mhim.synth.camelyon_config import CamelyonConfig
from mhim.synth.feature_pool import read_pool
from mhim.synth.outlines import SlideMeta, read_meta

REAL = Path(__file__).parents[2] / "shared" / "data" / "camelyon16_tcga_meta"
SIDE = 5000
"""Side of the made-up outlines, level-0 pixels."""


def write_meta(folder: Path) -> Path:
    """Six tumour slides, one of them without outline, and six normal ones, in two hospitals."""
    folder.mkdir()
    names = [(f"{kind}_{i:03d}", int(kind == "tumor")) for kind in ("normal", "tumor") for i in range(5)]
    names += [("test_000", 0), ("test_001", 1)]
    (folder / "mhim_label_c16.csv").write_text("".join(f"{name},{label}\n" for name, label in names))
    rows = [f"{label},{0.05 if label else ''},{i % 2}.0,{name}.tif" for i, (name, label) in enumerate(names)]
    header = "label,tumorp10000,hospital_corrected,slide_name"
    (folder / "flamby_camelyon16_metadata.csv").write_text("\n".join([header, *rows]) + "\n")
    square = SIDE * np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) + 40000
    drawn = [name for name, label in names if label and name != "tumor_004"]
    index = "".join(f"{name},positive,a,0,4,made-up\n" for name in drawn)
    (folder / "camelyon16_tumor_polygons_index.csv").write_text("slide,kind,name,start,n,source\n" + index)
    np.savez(folder / "camelyon16_tumor_polygons.npz", vertices=square.astype(np.int32))
    return folder


def write_pool(path: Path, groups: int = 8) -> Path:
    """Twelve patches a group, the last four tumour, in five features, with shifts between groups."""
    rng = np.random.default_rng(0)
    label = np.tile([0] * 8 + [1] * 4, groups)
    group = np.repeat(np.arange(groups), 12)
    shift = rng.standard_normal((groups, 5))[group]
    features = rng.standard_normal((len(label), 5)) + shift + label[:, None] * [2.0, 0, 0, 0, 0]
    np.savez(path, features=features.astype(np.float32), label=label, group=group)
    return path


@pytest.fixture
def config(tmp_path: Path) -> CamelyonConfig:
    meta, pool = write_meta(tmp_path / "meta"), write_pool(tmp_path / "pool.npz")
    values = {"tiles_mean": 900, "tiles_min": 300, "tiles_max": 4000, "tile_scale": 0.5}
    return CamelyonConfig.model_validate({"meta": meta, "pool": pool} | values)


def changed(config: CamelyonConfig, **values: object) -> CamelyonConfig:
    return CamelyonConfig.model_validate(config.model_dump() | values)


def contents(folder: Path) -> dict[str, list[np.ndarray]]:
    found = {}
    for path in sorted((folder / "features").glob("*.h5")):
        with h5py.File(path) as file:
            found[path.stem] = [np.asarray(file[key]) for key in sorted(file)]
    return found


def test_bags_say_what_they_are(config: CamelyonConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not make_simulation(out, config, workers=0).failed
    cohort = read_cohort(out / "cohort.csv")
    assert {row.site for row in cohort} == {"hospital_0", "hospital_1"}
    table = list(csv.DictReader((out / "cohort.csv").read_text().splitlines()))
    assert {row["part"] for row in table if row["slide_id"].startswith("test_")} == {"test"}
    assert {row["simulation"] for row in table} == {"camelyon16-like"}
    for row in cohort:
        bag = load_bag(bag_path(out, row.slide_id))
        with h5py.File(bag_path(out, row.slide_id)) as file:
            kind = np.asarray(file["instance_kind"])
        assert bag.attributes["simulation"] == "camelyon16-like"
        assert bag.xy_px0 is not None
        assert bag.annotation_fraction is not None
        assert len(np.unique(bag.xy_px0, axis=0)) == len(bag) == len(kind)
        assert (bag.xy_px0 % config.pitch_px0 == 0).all()
        assert set(kind.tolist()) <= {NORMAL, SALIENT, SUBTLE}
        assert (kind > 0).any() == (row.label == "1")
        assert (bag.annotation_fraction[kind > 0] > 0).all()


def test_a_squares_tumour_has_its_area_and_its_known_share(config: CamelyonConfig) -> None:
    for plan in plan_simulation(config):
        layout = lay_out(plan.meta, config)
        assert layout.cells.min() >= 0
        if plan.meta.label and plan.slide_id != "tumor_004":
            assert layout.coverage.sum() * config.pitch_px0**2 == pytest.approx(SIDE**2, rel=1e-9)
            assert layout.coverage.sum() / len(layout.coverage) == pytest.approx(0.05, rel=0.02)
        if plan.slide_id == "tumor_004":
            assert layout.coverage.sum() == pytest.approx(0.05 * config.tiles_mean * 0.5, rel=0.02)


def test_the_stated_share_of_tumour_is_subtle(config: CamelyonConfig) -> None:
    for fraction, only, wanted in ((0.0, 0.0, 0.0), (0.5, 0.0, 0.5), (0.0, 1.0, 1.0)):
        settings = changed(config, subtle_fraction=fraction, subtle_only_fraction=only)
        kinds = np.concatenate([lay_out(plan.meta, settings).kind for plan in plan_simulation(settings)])
        assert (kinds == SUBTLE).sum() / (kinds > 0).sum() == pytest.approx(wanted, abs=0.03)


def test_equal_settings_make_equal_bags_also_in_workers(config: CamelyonConfig, tmp_path: Path) -> None:
    make_simulation(tmp_path / "a", config, workers=0)
    make_simulation(tmp_path / "b", config, workers=2)
    make_simulation(tmp_path / "c", changed(config, seed=1), workers=0)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    for slide, arrays in a.items():
        assert all(np.array_equal(one, two) for one, two in zip(arrays, b[slide], strict=True))
        assert not np.array_equal(arrays[-2], c[slide][-2])
    for table in ("cohort.csv", "truth.csv"):
        assert (tmp_path / "a" / table).read_text() == (tmp_path / "b" / table).read_text()


def test_it_goes_on_where_it_stopped(config: CamelyonConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_simulation(out, config, workers=0)
    whole = contents(out)
    bag_path(out, "tumor_001").unlink()
    bag_path(out, "normal_002").write_bytes(b"cut off")
    (out / "cohort.csv").unlink()
    result = make_simulation(out, config, workers=0)
    assert sorted(result.done) == ["normal_002", "tumor_001"]
    assert (out / "cohort.csv").exists()
    assert all(np.array_equal(x, y) for k, v in contents(out).items() for x, y in zip(v, whole[k], strict=True))
    with pytest.raises(ArtefactError, match="other origin"):
        missing_bags(out, changed(config, seed=1))
    assert len(make_simulation(out, changed(config, seed=1), workers=0, overwrite=True).done) == 12


def neighbour_correlation(config: CamelyonConfig) -> float:
    """Correlation of a feature between tiles side by side on a normal slide."""
    pool = read_pool(config.pool)
    meta = SlideMeta("normal_big", 0, "hospital_0", "train", None)
    layout = lay_out(meta, config)
    features = make_features(meta, layout, pool, np.arange(8), config)[:, 0]
    at = {tuple(cell): value for cell, value in zip(layout.cells.tolist(), features, strict=True)}
    pairs = [(value, at[x + 1, y]) for (x, y), value in at.items() if (x + 1, y) in at]
    return float(np.corrcoef(np.array(pairs).T)[0, 1])


def test_near_tiles_are_alike_unless_switched_off(config: CamelyonConfig) -> None:
    large = changed(config, tiles_mean=4000, tiles_max=8000, tiles_min=3000, tile_scale=1.0)
    assert neighbour_correlation(large) > 0.15
    assert abs(neighbour_correlation(changed(large, correlation=0.0))) < 0.06


def test_no_group_of_the_pool_serves_two_folds(config: CamelyonConfig) -> None:
    plans = plan_simulation(config)
    of_fold = [set().union(*(plan.groups for plan in plans if plan.fold == fold)) for fold in range(config.folds)]
    assert all(of_fold[i].isdisjoint(of_fold[j]) for i in range(3) for j in range(i))
    assert {(plan.fold, plan.meta.label) for plan in plans} == {(fold, label) for fold in range(3) for label in (0, 1)}


def test_subtle_tumour_is_nearer_to_normal_than_salient_tumour(config: CamelyonConfig) -> None:
    settings = changed(config, subtle_fraction=0.5, subtle_only_fraction=0.0, slide_effect=0.0, site_effect=0.0)
    pool = read_pool(settings.pool)
    first: dict[int, list[float]] = {NORMAL: [], SALIENT: [], SUBTLE: []}
    for plan in plan_simulation(settings):
        layout = lay_out(plan.meta, settings)
        features = make_features(plan.meta, layout, pool, np.array(plan.groups), settings)[:, 0]
        for kind, values in first.items():
            values += features[layout.kind == kind].tolist()
    means = {kind: float(np.mean(values)) for kind, values in first.items()}
    assert means[NORMAL] + 0.5 < means[SUBTLE] < means[SALIENT] - 0.5


def test_bad_inputs_are_named(config: CamelyonConfig, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=np.zeros((3, 2)))
    (tmp_path / "y.npz").write_bytes(b"no")
    with pytest.raises(FeatureError, match=r"x\.npz.*no array label, group"):
        read_pool(tmp_path / "x.npz")
    with pytest.raises(FeatureError, match="not a readable NPZ"):
        read_pool(tmp_path / "y.npz")
    with pytest.raises(FeatureError, match="9 components"):
        read_pool(config.pool, 9)
    with pytest.raises(ConfigError, match="no such file"):
        missing_bags(tmp_path / "out", changed(config, pool=tmp_path / "none.npz"))
    with pytest.raises(ConfigError, match="folds 20"):
        plan_simulation(changed(config, folds=20))
    table = config.meta / "flamby_camelyon16_metadata.csv"
    table.write_text(table.read_text().replace("0,,0.0,normal_000", "1,,0.0,normal_000"))
    with pytest.raises(CohortError, match="normal_000 has label 1"):
        read_meta(config.meta)
    np.savez(config.meta / "camelyon16_tumor_polygons.npz", vertices=np.zeros((3, 2)))
    with pytest.raises(CohortError, match="line 2: vertices 0 to 4 of 3"):
        read_meta(config.meta)


def test_the_verb(config: CamelyonConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["synth", "--like", "camelyon16", "--meta", str(config.meta), "--pool", str(config.pool), "-o", str(out)]
    runner = CliRunner()
    result = runner.invoke(app, [*given, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "would simulate 12 of 12 bags" in result.output
    assert not out.exists()
    short = ["--set", "tile_scale=0.02", "--workers", "0"]
    assert runner.invoke(app, [*given, *short]).exit_code == 0
    assert len(read_cohort(out / "cohort.csv")) == 12
    for wrong in ([*given, "--slides", "3"], [*given, "--set", "tile_scale=2"], given[:3] + given[-2:]):
        assert isinstance(runner.invoke(app, wrong).exception, ConfigError)


@pytest.mark.skipif(not REAL.is_dir(), reason="the slide tables and outlines are not here")
def test_the_listed_slides_have_their_tiles_and_their_tumour(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.npz")
    config = CamelyonConfig.model_validate({"meta": REAL, "pool": pool, "tile_scale": 0.1})
    plans = plan_simulation(config)
    assert len(plans) == 398
    assert sum(plan.meta.label for plan in plans) == 159
    assert {plan.meta.part for plan in plans} == {"train", "test"}
    layouts = [lay_out(plan.meta, config) for plan in plans[::4]]
    counts = np.array([len(layout.kind) for layout in layouts]) / 0.1
    assert counts.min() > 1980
    assert 7000 < counts.mean() < 11000
    compared = [
        (layout.coverage.sum() / len(layout.coverage), plan.meta.tumour_fraction)
        for plan, layout in zip(plans[::4], layouts, strict=True)
        if plan.meta.tumour_fraction and plan.meta.tumour_fraction >= 0.001 and 2100 < len(layout.kind) / 0.1 < 19900
    ]
    assert len(compared) > 10
    assert all(made == pytest.approx(known, rel=0.03) for made, known in compared)
