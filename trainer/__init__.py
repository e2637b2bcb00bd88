"""Offline plane: data in, adapter version and evidence out."""
