"""vLLM behind the gateway: started by Branchline, or by an operator."""
