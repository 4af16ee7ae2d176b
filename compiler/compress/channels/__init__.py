"""Structural pruning: channels, hidden units and attention heads that go, with all that is coupled with them (`coupling.py`)."""
