"""Training data: reading it, and making examples of it that fit the model."""
