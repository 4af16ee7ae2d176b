"""Zeros among activations, by thresholds: an algorithm a file, and how they are written."""
