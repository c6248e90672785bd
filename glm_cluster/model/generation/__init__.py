"""Continuing prompts with the plain forward, with Hugging Face's semantics. Knows a model only by its call."""
