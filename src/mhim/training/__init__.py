"""Runs: the training loop, cross-validation, the run folder."""
