"""What runs inside vLLM's processes: the resolver that finds adapters, their private copies, and the guard."""
