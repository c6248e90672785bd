"""Measuring: the engine alone, a server as its clients see it, and the floor that a machine sets under both."""
