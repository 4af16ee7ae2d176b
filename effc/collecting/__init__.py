"""Collecting traces: kernels of models and of a spread of shapes, under many schedules, measured on a machine that others use too."""
