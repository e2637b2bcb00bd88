"""`serve --workers N`: one parent with the engine and the registry, N processes that answer. See `gateway.py`."""
