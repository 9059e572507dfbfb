"""Mask strategies: which instances the student does not see."""
