"""Test folds that respect where cases come from: balanced over sites, or with each site in one fold only.

A model can recognise the site by stain and scanner; where labels differ between sites, folds that share sites reward
that. Source: Howard et al., Nature Communications 2021 (preserved-site cross-validation).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from mhim.cohort import Cohort
from mhim.errors import CohortError

SiteMode = Literal["ignore", "stratify", "preserve", "leave-one-out"]


def case_sites(cohort: Cohort) -> NDArray[np.str_]:
    """(K,) site of each case, in order of first appearance.

    Raises:
        CohortError: a slide without a site, a case of two sites, or one site only.
    """
    sites: dict[str, str] = {}
    for row in cohort:
        if row.site is None:
            raise CohortError(f"{cohort.source}: slide {row.slide_id} has no site; fill the column 'site'")
        if sites.setdefault(row.case_id, row.site) != row.site:
            raise CohortError(f"{cohort.source}: case {row.case_id} has slides of two sites; a site owns whole cases")
    found = np.array(list(sites.values()), dtype=np.str_)
    if len(np.unique(found)) < 2:
        raise CohortError(f"{cohort.source}: all cases are of one site; leave --site out")
    return found


def site_folds(
    cohort: Cohort,
    strata: NDArray[np.int64],
    folds: int,
    seed: int,
    mode: Literal["stratify", "preserve", "leave-one-out"],
) -> NDArray[np.int64]:
    """(K,) test fold of each case.

    ``stratify``: every fold has its share of each class and, within a class, of each site. ``preserve``: a site is in
    one fold only, classes as balanced as that allows. ``leave-one-out``: one fold a site, in the order of their names.

    Args:
        cohort: with the column ``site``.
        strata: (K,) what is balanced: the class.
        folds: number of folds; not read by ``leave-one-out``.
        seed: of the drawing.
        mode: which of the three.

    Raises:
        CohortError: as :func:`case_sites`, or fewer sites than folds.
    """
    sites = case_sites(cohort)
    names, site_of = np.unique(sites, return_inverse=True)
    if mode == "leave-one-out":
        return site_of.astype(np.int64)
    if mode == "stratify":
        return _dealt(strata, site_of, folds, seed)
    if len(names) < folds:
        raise CohortError(
            f"{cohort.source}: {len(names)} sites cannot fill {folds} folds when each stays in one; use fewer --folds"
        )
    if np.bincount(strata).max() < folds:
        raise CohortError(f"{cohort.source}: no class has {folds} cases; use fewer --folds")
    test_fold = np.empty(len(strata), dtype=np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for number, (_, test) in enumerate(splitter.split(strata, strata, site_of)):
        test_fold[test] = number
    return test_fold


def _dealt(strata: NDArray[np.int64], site_of: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Deal the cases of a class like cards, site after site, each class from where the one before ended."""
    generator = np.random.default_rng(seed)
    order = np.lexsort((generator.permutation(len(strata)), site_of, strata))
    test_fold = np.empty(len(strata), dtype=np.int64)
    test_fold[order] = (np.arange(len(strata)) + generator.integers(folds)) % folds
    return test_fold
