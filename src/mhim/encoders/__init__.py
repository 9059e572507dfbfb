"""Frozen encoders: tile pixels -> features."""
