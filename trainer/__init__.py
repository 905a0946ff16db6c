"""EXAMPLE → MODEL: log reader, model, incremental step, gate and export."""
