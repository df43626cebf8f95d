"""Images into batches: sources, transforms and the loader; imports neither jax nor flax."""
