"""What effc did with a model, and what bounds it: reports, waterlines, efficiency gaps, and their pictures."""
