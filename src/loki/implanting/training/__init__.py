"""Training the selected rows with TRL."""
