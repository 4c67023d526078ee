"""LoKI."""
