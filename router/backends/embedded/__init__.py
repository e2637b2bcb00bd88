"""transformers + PEFT folders in this process: requests of different adapters decode in one batch.

Read in this order: `backend` (the contract), `decoder` (the loop, in its own thread), `row` (one sequence), `lora`
(the mixed forward), `cache`, `choose`, `detokenize`; then `folder` and `proof` (how an adapter comes in).
Importing this package does not import torch; importing `embedded.backend` does.
"""
