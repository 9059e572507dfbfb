"""Many aggregators and methods on one cohort under one protocol: the main table of the talk for one's own data.

Every entry trains on the same folds, with the same optimisation and the same seeds. A method that starts from a plain
baseline takes the plain run of the same aggregator, fold and seed, so that no baseline is trained twice.
"""
