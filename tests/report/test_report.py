"""The report: self-contained, deterministic, well-formed, and with the numbers of the runs."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from typer.testing import CliRunner

from mhim.cli import app
from mhim.errors import ArtefactError
from mhim.evaluation import draws_of, fold_predictions, pooled
from mhim.maps.study import read_test_predictions
from mhim.metrics import Predictions
from mhim.report import ReportConfig, write_report
from mhim.report.curves import GRID, band, precision_points, precision_recall, roc, roc_points
from mhim.report.svg import Axes, Line, chart, ticks
from mhim.resampling import auroc
from mhim.training.runs import Run, open_run

CONFIG = ReportConfig.model_validate({"resamples": 200, "slides": 4})
VOID = {"meta", "link", "br", "hr", "img", "input", "line", "circle", "polygon"}


class Page(HTMLParser):
    """A balance check, and what the page holds by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html(runs: list[Run], maps: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report(runs, out, CONFIG, maps)
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_nothing_is_asked_from_outside(html: str, page: Page):
    """No address in the file at all, no element that loads one, and a policy that forbids it."""
    assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", html, re.IGNORECASE)
    assert "http" not in html.replace("http-equiv", "")
    assert "@import" not in html
    assert "url(" not in html
    assert not page.all("link")
    assert all((image["src"] or "").startswith("data:image/webp;base64,") for image in page.all("img"))
    assert all("src" not in script for script in page.all("script"))
    assert all((link["href"] or "").startswith("#") for link in page.all("a"))
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in page.all("meta"))


def test_page_is_accessible(page: Page):
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert all(heading.get("scope") in ("col", "row") for heading in page.all("th"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in page.all("a")} <= {f"#{name}" for name in ids}


def test_equal_input_gives_equal_bytes(runs: list[Run], maps: Path, html: str, tmp_path: Path):
    """With given maps and with maps drawn on the fly."""
    command = re.compile(r"<p>This page: .*</p>")
    write_report(runs, tmp_path / "report.html", CONFIG, maps)
    assert command.sub("", (tmp_path / "report.html").read_text()) == command.sub("", html)
    write_report(runs, tmp_path / "drawn.html", CONFIG)
    first = (tmp_path / "drawn.html").read_bytes()
    write_report(runs, tmp_path / "drawn.html", CONFIG)
    assert (tmp_path / "drawn.html").read_bytes() == first


def test_numbers_are_those_of_metrics_json(runs: list[Run], page: Page):
    """Headline, interval, pooled and per-fold values of both runs stand in the page."""
    words = set(page.words)
    for run in runs:
        metrics = run.metrics()
        for part in ("fold_mean", "pooled"):
            for value in metrics[part].values():
                text = f"{value['value']:.3f}"
                if value["low"] is not None:
                    text += f" [{value['low']:.3f}, {value['high']:.3f}]"
                assert text in words
        for fold in metrics["folds"]:
            assert f"{fold['auroc']:.3f}" in words


def test_every_slide_is_in_the_searchable_table(runs: list[Run], html: str, page: Page):
    body = html.split('<table id="predictions">')[1].split("</table>")[0]
    for said in read_test_predictions(runs[1]):
        row = next(line for line in body.splitlines() if f">{said.slide_id}</" in line)
        assert f"<td>{said.probabilities[1]:.4f}</td>" in row
        assert f"<td>{said.y_true}</td>" in row
        assert ('class="wrong"' in row) == said.is_wrong
    assert body.count("<tr") == 1 + len(read_test_predictions(runs[1]))
    assert any(field.get("type") == "search" for field in page.all("input"))


def test_what_is_needed_to_reproduce_is_there(runs: list[Run], page: Page):
    text = "".join(page.words)
    for run in runs:
        assert run.info["identity"] in text
        assert run.info["data_fingerprint"] in text
    assert "mhim train --config" in text
    assert "consistency_weight: 0.1" in text


def test_pictures_cautions_and_localisation_are_shown(page: Page, maps: Path):
    text = "".join(page.words)
    assert len(page.all("img")) == CONFIG.slides * (1 + 3 * 2)  # the slide alone, three maps by two runs
    assert len({link["href"] for link in page.all("a") if (link["href"] or "").startswith("#slide-")}) == CONFIG.slides
    assert "Only 14 cases were tested" in text
    assert "Tile probability, mhim-v1 (abmil)" in text


def test_maps_of_other_runs_are_refused(runs: list[Run], maps: Path, tmp_path: Path):
    with pytest.raises(ArtefactError, match="maps of another run"):
        write_report([runs[1]], tmp_path / "report.html", CONFIG, maps)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match="no maps here"):
        write_report(runs, tmp_path / "report.html", CONFIG, tmp_path / "empty")
    assert not (tmp_path / "report.html").exists()


def test_without_bags_the_report_is_still_written(study_run: Path, tmp_path: Path):
    """A run folder alone is enough; the missing maps are named."""
    shutil.copytree(study_run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(re.sub(r"^features: .*$", "features: /nowhere", config.read_text(), flags=re.MULTILINE))
    write_report([open_run(tmp_path / "run")], tmp_path / "report.html", CONFIG)
    assert "No map of s" in "".join(Page((tmp_path / "report.html").read_text()).words)


def test_text_from_the_user_is_escaped(runs: list[Run], tmp_path: Path):
    config = CONFIG.model_copy(update={"title": "<script>alert(1)</script>", "slides": 0, "date": "2026-01-01"})
    write_report(runs, tmp_path / "report.html", config)
    text = (tmp_path / "report.html").read_text()
    assert "<script>alert(1)" not in text
    assert "2026-01-01" in text


def test_the_verb_writes_a_file(study_run: Path, tmp_path: Path):
    out = tmp_path / "report.html"
    words = ["report", str(study_run), "--with-baseline", "-o", str(out), "--slides", "0", "--resamples", "100"]
    assert CliRunner().invoke(app, [*words, "--dry-run"]).exit_code == 0
    assert not out.exists()
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    Page(out.read_text())


def area(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.trapezoid(y, x))


def test_curves_enclose_the_areas_that_the_metrics_state(runs: list[Run]):
    together = pooled(fold_predictions(runs[1]))
    positive, score = together.y_true == 1, together.probabilities[:, 1]
    points = roc(together, 1)
    assert points is not None
    assert area(*points) == pytest.approx(roc_auc_score(positive, score))
    points = precision_recall(together, 1)
    assert points is not None
    assert area(*points) == pytest.approx(average_precision_score(positive, score))


def test_bands_hold_the_curve_and_agree_with_the_resampled_area(runs: list[Run]):
    """Areas under the resampled ROC curves are the resampled AUROC, up to the grid."""
    folds = fold_predictions(runs[1])
    together = pooled(folds)
    draws = draws_of(folds, 200)
    kept: list[np.ndarray] = []

    def spy(hits: np.ndarray, alarms: np.ndarray) -> np.ndarray:
        kept.append(roc_points(hits, alarms))
        return kept[-1]

    limits = band(together, 1, draws, spy)
    assert limits is not None
    assert (limits[0] <= limits[1]).all()
    areas = auroc(together, draws.weights(together.case_id))
    areas = areas[np.isfinite(areas)]
    np.testing.assert_allclose([area(GRID, curve) for curve in kept[0]], areas, atol=0.02)


def test_precision_is_taken_where_recall_is_first_reached():
    hits, alarms = np.array([[1.0, 1, 2]]), np.array([[0.0, 1, 2]])
    values = precision_points(hits, alarms)[0]
    np.testing.assert_allclose(values[[0, 50, 51, 100]], [1, 1, 0.5, 0.5])


def test_a_one_class_part_has_no_curve():
    only = Predictions(np.array(["a", "b"]), np.array([1, 1]), np.array([1, 1]), np.array([[0.5, 0.5], [0.2, 0.8]]))
    assert roc(only, 1) is None
    assert precision_recall(only, 1) is None


def test_chart_places_points_and_escapes_text():
    svg = str(chart(Axes("<x>", "y", "a & b"), [Line([0, 1], [0, 1], "pooled")]))
    assert 'points="52,238 328,12"' in svg
    assert "&lt;x&gt;" in svg
    assert "a &amp; b" in svg


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [(0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 11, True, [0, 5, 10]), (0, 3, True, [0, 1, 2, 3])],
)
def test_ticks_are_round(low: float, high: float, whole: bool, expected: list[float]):
    assert ticks(low, high, whole) == expected
