"""Data plane: HTTP in, decision, engine, HTTP out."""
