"""Strings to tokens and back. No torch."""
