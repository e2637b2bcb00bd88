"""Sequences of tasks under several arms and seeds: what is learned, and what is forgotten."""
