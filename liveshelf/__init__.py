"""Liveshelf: rearranges a shop's shelf while the shopper is still looking at it."""

__version__ = "0.1.0"
