"""The serving cluster for GLM models. Import what you need from its packages; nothing is imported here."""

__version__ = "0.1.0"
