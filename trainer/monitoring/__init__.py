"""Watching a live version through its gateway: the same rows again and again, and the rollback."""
