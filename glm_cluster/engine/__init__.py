"""Continuous batching. Knows torch; has never heard of Ray or HTTP."""
