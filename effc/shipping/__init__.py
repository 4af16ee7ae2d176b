"""Compiled models in folders: written by one process, run by another."""
