"""What a model does on batches of its user: statistics that compression and planning need."""
