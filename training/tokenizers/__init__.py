"""Observations to tokens and back."""
