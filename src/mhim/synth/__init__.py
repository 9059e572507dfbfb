"""Synthetic whole-slide images with exact tumour masks."""
