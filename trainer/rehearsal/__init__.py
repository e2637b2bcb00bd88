"""Remembering earlier tasks' rows: which are kept, and how they join the stream."""
