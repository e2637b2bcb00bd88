"""The synthetic instruction tasks that the pocket base learns from: copying, lists, forms, patterns, numbers.

None of them is one of the quickstart's three tasks, and none shares a template or a task entity with them.
"""
