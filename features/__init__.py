"""FEATURE: rows, the pure fold, the one encoder, Feast definitions and the store behind them."""
