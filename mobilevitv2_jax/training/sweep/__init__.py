"""Sweeps: many variants of one config, trained and compared."""
