"""Moves what is in force towards what the registry wants: versions into the engine, classifier and exemplars."""
