"""The learned cost model: trained on traces by gradient-boosted trees, kept as text with a card, never unpickled."""
