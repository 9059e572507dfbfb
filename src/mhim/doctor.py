"""Faults of a cohort before any training: said in plain sentences, all of them at once.

Nothing stops at the first fault: tables and bags are read leniently, and every check that can still be made is made.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mhim.bag import load_bag
from mhim.cohort import REQUIRED, read_table
from mhim.errors import CohortError, FeatureError
from mhim.splits import BOTH, FOLD_COLUMN, PARTS

Severity = Literal["fatal", "warning", "note"]
FEW_CASES = 10
SAME_MPP = 0.02
FOLDS = 5
RESAMPLES = 1000
NAMED = 3


@dataclass(frozen=True)
class Finding:
    """One thing about the cohort.

    Attributes:
        check: short name, for programs.
        severity: "fatal" (training would fail or its numbers be wrong), "warning" (look at it), "note".
        sentence: what it is and what to do, for people.
        slides: the slides or cases concerned.
        numbers: values behind the sentence.
    """

    check: str
    severity: Severity
    sentence: str
    slides: tuple[str, ...] = ()
    numbers: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Facts:
    """What one bag file says.

    Attributes:
        size: number of instances.
        width: feature width.
        encoder, mpp: as recorded, or None.
    """

    size: int
    width: int
    encoder: str | None
    mpp: float | None


Record = Mapping[str, str]


def diagnose(
    cohort: Path, features: Path, splits: Path | None = None, on_slide: Callable[[int], None] = lambda total: None
) -> list[Finding]:
    """Every finding about a cohort table, its bags and, where given, its splits; the gravest first.

    Args:
        cohort: the table.
        features: folder of bag files.
        splits: the splits table, or None.
        on_slide: called after each bag with the number of bags, for progress.
    """
    try:
        columns, lines = read_table(cohort)
    except CohortError as error:
        return [Finding("table", "fatal", str(error))]
    missing = [name for name in REQUIRED if name not in columns]
    if missing or not lines:
        text = f"{cohort}: " + (f"no column {', '.join(missing)}" if missing else "the table has no rows")
        return [Finding("table", "fatal", text)]
    records = [record for _, record in lines]
    findings = [*_table(records), *_labels(records)]
    facts, faults = _read_bags(records, features, on_slide)
    findings += [*_files(records, features), *faults, *_alike(facts), *_shortcuts(records, facts)]
    if splits is not None:
        findings += _splits(records, splits)
    order = {"fatal": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])


def _some(names: Sequence[str]) -> str:
    """``a, b, c and 4 more``."""
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def _count(number: int, noun: str, one: str = "", many: str = "") -> str:
    """``1 case is``, ``2 cases are``: a number, its noun, and the verb that agrees."""
    verb = one if number == 1 else many
    return f"{number} {noun}{'s' * (number != 1)}{' ' * bool(verb)}{verb}"


def _table(records: Sequence[Record]) -> Iterator[Finding]:
    """Ids: repeated, empty, or of one slide in several cases."""
    counts = Counter(record["slide_id"] for record in records)
    repeated = tuple(name for name, count in counts.items() if count > 1)
    if repeated:
        yield Finding(
            "duplicates",
            "fatal",
            f"{_count(len(repeated), 'slide_id', 'appears', 'appear')} more than once: {_some(repeated)}.",
            repeated,
        )
    for column in ("slide_id", "case_id", "label"):
        empty = sum(not record[column] for record in records)
        if empty:
            text = f"{_count(empty, 'row', 'has', 'have')} nothing in the column {column}; fill it."
            yield Finding("empty", "fatal", text)
    folded: dict[str, set[str]] = defaultdict(set)
    for record in records:
        folded[_plain(record["case_id"])].add(record["case_id"])
    twins = [sorted(names) for names in folded.values() if len(names) > 1]
    if twins:
        text = "; ".join(" = ".join(names) for names in twins[:NAMED])
        yield Finding(
            "case_spelling",
            "warning",
            f"{_count(len(twins), 'case')} may be written in two ways ({text}); if they are one patient, its "
            f"slides can come to lie in training and test.",
            tuple(name for names in twins for name in names),
        )


def _plain(text: str) -> str:
    """A name without case, blanks and punctuation."""
    return re.sub(r"[\W_]+", "", text).casefold()


def _labels(records: Sequence[Record]) -> Iterator[Finding]:
    """Labels: typed in two ways, one class, tiny classes, cases with several labels."""
    cases: dict[str, set[str]] = defaultdict(set)
    labels_of: dict[str, set[str]] = defaultdict(set)
    written: dict[str, set[str]] = defaultdict(set)
    for record in records:
        cases[record["label"]].add(record["case_id"])
        labels_of[record["case_id"]].add(record["label"])
        written[_plain(record["label"])].add(record["label"])
    for names in written.values():
        if len(names) > 1:
            quoted = " and ".join(f"'{name}'" for name in sorted(names))
            yield Finding(
                "label_spelling", "fatal", f"One label is typed in several ways: {quoted}; they would be classes."
            )
    if len(cases) < 2:
        yield Finding("one_class", "fatal", "All slides have one label; a classifier needs two classes.")
    for label, members in cases.items():
        if len(members) < FEW_CASES:
            severity: Severity = "fatal" if len(members) < 3 else "warning"
            text = f"Class '{label}' has {len(members)} case{'s' * (len(members) > 1)}; "
            text += "train, validation and test need one each." if severity == "fatal" else "its numbers will be rough."
            yield Finding("tiny_class", severity, text, tuple(sorted(members)))
    mixed = tuple(case for case, labels in labels_of.items() if len(labels) > 1)
    if mixed:
        text = f"{_count(len(mixed), 'case', 'has', 'have')} several labels: {_some(mixed)}; "
        text += "fine unless the label is the patient's."
        yield Finding("mixed_cases", "note", text, mixed)


def _files(records: Sequence[Record], folder: Path) -> Iterator[Finding]:
    """Slides without a bag, and bags without a slide."""
    known = {record["slide_id"] for record in records}
    there = {path.stem for path in folder.glob("*.h5") if not path.name.startswith(".")} if folder.is_dir() else set()
    missing, extra = tuple(sorted(known - there)), tuple(sorted(there - known))
    if missing:
        yield Finding(
            "missing_bags",
            "fatal",
            f"{len(missing)} of {len(known)} slides have no bag in {folder}: {_some(missing)}; encode them, or train "
            f"with --allow-missing.",
            missing,
        )
    if extra:
        text = f"{_count(len(extra), 'bag')} without a row in the table, not used: {_some(extra)}."
        yield Finding("extra_bags", "note", text, extra)


def _read_bags(
    records: Sequence[Record], folder: Path, on_slide: Callable[[int], None]
) -> tuple[dict[str, Facts], list[Finding]]:
    """Facts of the bags that can be used, and a finding for each that cannot (empty, NaN, damaged)."""
    names = [name for name in dict.fromkeys(record["slide_id"] for record in records) if _is_file(folder, name)]
    facts: dict[str, Facts] = {}
    faults: list[Finding] = []
    for name in names:
        try:
            bag = load_bag(folder / f"{name}.h5")
        except FeatureError as error:
            faults.append(Finding("bad_bag", "fatal", f"{error}.", (name,)))
        else:
            mpp = bag.attributes.get("mpp")
            encoder = bag.attributes.get("encoder")
            facts[name] = Facts(len(bag), bag.features.shape[1], encoder and str(encoder), float(mpp) if mpp else None)
        on_slide(len(names))
    return facts, faults


def _is_file(folder: Path, name: str) -> bool:
    return bool(name) and "/" not in name and (folder / f"{name}.h5").is_file()


def _alike(facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Bags of different encoders, widths or scales."""
    for what, values in (
        ("encoder", {name: fact.encoder or "not recorded" for name, fact in facts.items()}),
        ("feature width", {name: str(fact.width) for name, fact in facts.items()}),
    ):
        counts = Counter(values.values())
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            odd = tuple(name for name, value in values.items() if value != usual)
            shares = ", ".join(f"{value} ({count})" for value, count in counts.most_common())
            text = f"The bags have different {what}s: {shares}; encode all slides alike."
            yield Finding(f"mixed_{what.replace(' ', '_')}", "fatal", text, odd)
    scales = {name: fact.mpp for name, fact in facts.items() if fact.mpp is not None}
    if scales:
        middle = float(np.median(list(scales.values())))
        odd = tuple(name for name, mpp in scales.items() if abs(mpp / middle - 1) > SAME_MPP)
        if odd:
            text = (
                f"{_count(len(odd), 'bag', 'is', 'are')} not at {middle:g} µm per pixel like the others: {_some(odd)}; "
            )
            text += "tile again."
            yield Finding("mixed_mpp", "fatal", text, odd)
    if scales and len(scales) < len(facts):
        unknown = tuple(name for name in facts if name not in scales)
        text = f"{_count(len(unknown), 'bag', 'does', 'do')} not say the scale: {_some(unknown)}."
        yield Finding("unknown_mpp", "warning", text, unknown)


def _shortcuts(records: Sequence[Record], facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Whether the size of the bag or the site alone tells the label."""
    usable = [r for r in {r["slide_id"]: r for r in records}.values() if r["slide_id"] in facts and r["label"]]
    labels = np.array([_plain(record["label"]) for record in usable])  # one label typed in two ways is one here
    cases = np.array([record["case_id"] for record in usable])
    if len(np.unique(labels)) < 2:
        return
    size = np.log1p([[facts[record["slide_id"]].size] for record in usable])
    ways = {"bag size": (size, make_pipeline(StandardScaler(), LogisticRegression()))}
    sites = [record.get("site", "") for record in usable]
    if len(set(sites)) > 1:
        ways["site"] = (
            np.array(sites)[:, None],
            make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression()),
        )
    for what, (values, model) in ways.items():
        reached = shortcut_auroc(values, labels, cases, model)
        if reached is None:
            continue
        value, low, high = reached
        severity: Severity = "warning" if low > 0.5 else "note"
        text = f"The {what} alone predicts the label with AUROC {value:.2f} [{low:.2f}, {high:.2f}] (cross-validated)"
        text += _verdict(low, high)
        yield Finding(
            f"{what.replace(' ', '_')}_shortcut", severity, text, (), {"auroc": value, "low": low, "high": high}
        )


def _verdict(low: float, high: float) -> str:
    """What the interval of a shortcut's AUROC says."""
    if low > 0.5:
        return "; a model can score by it without looking at tissue."
    if high < 0.5:  # balanced groups: what is held out tips the rest the other way
        return ": below chance, as cross-validation comes out where groups are balanced; no shortcut found."
    return ": not told apart from chance."


def shortcut_auroc(
    values: NDArray[np.generic], labels: NDArray[np.str_], cases: NDArray[np.str_], model: object, seed: int = 0
) -> tuple[float, float, float] | None:
    """AUROC that a few numbers alone reach, cross-validated by case, with its 95 % case-bootstrap interval.

    Args:
        values: (M, F) what is known of each slide.
        labels: (M,) classes; one against the rest, averaged, for more than two.
        cases: (M,) owners, never split.
        model: scikit-learn classifier; the AUROC is that of its pooled out-of-fold probabilities.
        seed: of folds and bootstrap.

    Returns:
        (AUROC, low, high); None where a class has fewer than two cases.
    """
    classes = np.unique(labels)
    fewest = min(len(np.unique(cases[labels == label])) for label in classes)
    if fewest < 2:
        return None
    scores = np.zeros((len(labels), len(classes)))
    folds = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    for train, test in folds.split(values, labels, cases):
        if len(np.unique(labels[train])) < len(classes):
            return None
        fitted = model.fit(values[train], labels[train])  # pyright: ignore[reportAttributeAccessIssue]
        # relative to the training share: folds of other shares stay on one scale
        scores[test] = fitted.predict_log_proba(values[test]) - np.log([np.mean(labels[train] == c) for c in classes])
    value = _auroc(scores, labels, classes)
    names, owner = np.unique(cases, return_inverse=True)
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(owner == index) for index in range(len(names))]
    drawn = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[index] for index in generator.integers(len(names), size=len(names))])
        if len(np.unique(labels[rows])) == len(classes):
            drawn.append(_auroc(scores[rows], labels[rows], classes))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return value, float(low), float(high)


def _auroc(scores: NDArray[np.float64], labels: NDArray[np.str_], classes: NDArray[np.str_]) -> float:
    """One against the rest, averaged over classes; two classes by the difference of their scores."""
    if len(classes) == 2:
        return float(roc_auc_score(labels == classes[1], scores[:, 1] - scores[:, 0]))
    return float(np.mean([roc_auc_score(labels == name, scores[:, i]) for i, name in enumerate(classes)]))


def _splits(records: Sequence[Record], path: Path) -> Iterator[Finding]:
    """Splits: a case in two parts or tested twice, unknown or missing cases, empty parts, a class not in training."""
    try:
        columns, lines = read_table(path)
    except CohortError as error:
        yield Finding("splits", "fatal", str(error))
        return
    folds = [name for name in columns if FOLD_COLUMN.fullmatch(name)]
    if "case_id" not in columns or not folds:
        yield Finding("splits", "fatal", f"{path}: expected columns case_id, fold_0, fold_1, ...")
        return
    parts: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in folds}
    for _, record in lines:
        for name in folds:
            if record[name]:
                parts[name][record["case_id"]].add(record[name])
    known, split = {record["case_id"] for record in records}, {record["case_id"] for _, record in lines}
    for names, text in ((split - known, "not in the cohort"), (known - split, "of the cohort in no fold")):
        if names:
            said = f"{_count(len(names), 'case')} {text}: {_some(sorted(names))}."
            yield Finding("split_cases", "fatal", said, tuple(sorted(names)))
    published = [name for name in folds if any(BOTH in found for found in parts[name].values())]
    if published:
        text = f"{_some(published)}: the test part also validates ('{BOTH}'), as in some published protocols; "
        text += "'mhim train' takes it under the protocol's name only, and the numbers are optimistic."
        yield Finding("validates_on_test", "warning", text)
    yield from _leaks(parts)
    classes = {label: {r["case_id"] for r in records if r["label"] == label} for label in {r["label"] for r in records}}
    for name in folds:
        for part in PARTS:
            if not any({part, BOTH if part != "train" else part} & found for found in parts[name].values()):
                yield Finding("empty_part", "fatal", f"{name} has no {part} part.")
        training = {case for case, found in parts[name].items() if "train" in found}
        for label, members in sorted(classes.items()):
            if not members & training:
                yield Finding("class_not_trained", "fatal", f"{name} has no case of class '{label}' in training.")


def _leaks(parts: Mapping[str, Mapping[str, set[str]]]) -> Iterator[Finding]:
    """Cases in two parts of a fold, and cases that several folds test."""
    for name, found in parts.items():
        both = tuple(sorted(case for case, where in found.items() if len(where) > 1))
        if both:
            text = f"{name}: {_count(len(both), 'case', 'is', 'are')} in more than one part: {_some(both)}; "
            text += "what is tested was trained on."
            yield Finding("case_leak", "fatal", text, both)
        unknown = {part for where in found.values() for part in where} - {*PARTS, BOTH}
        if unknown:
            yield Finding("unknown_part", "fatal", f"{name} holds '{min(unknown)}'; expected train, val or test.")
    once = {name: found for name, found in parts.items() if not name.startswith("repeat")}  # repeats may overlap
    tested = Counter(case for found in once.values() for case, where in found.items() if where & {"test", BOTH})
    twice = tuple(sorted(case for case, count in tested.items() if count > 1))
    if twice:
        text = f"{_count(len(twice), 'case', 'is', 'are')} tested in several folds: {_some(twice)}."
        yield Finding("tested_twice", "fatal", text, twice)
