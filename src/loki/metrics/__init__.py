"""What a model does on given texts."""
