"""Attention by tile registers."""
