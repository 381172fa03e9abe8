"""Octavo: small vision models, folded into eight bits."""

__version__ = "0.1.0"
