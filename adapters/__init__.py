"""Control plane: what exists and what is wanted. The leaf: no torch, no web framework."""
