"""Weights: names in other projects, files, and our checkpoints."""

from mobilevitv2_jax.weights.names import load_state_dict, state_dict

__all__ = ["load_state_dict", "state_dict"]
