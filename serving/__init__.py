"""FEATURE → SCORE → IMPRESSION: the scoring service, its candidate sources, and the model server."""
