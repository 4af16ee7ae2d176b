"""Choosing what runs at each site of a model: candidates, their times and errors, the whole model's verdict."""
