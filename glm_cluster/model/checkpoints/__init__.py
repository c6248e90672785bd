"""Checkpoints on disk: found by name, described, fetched, read, written anew. Knows names and files, no forward."""
