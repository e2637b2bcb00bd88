"""Ways to make one ΔW of several, or of one: each a short file with its paper. All in float32, all on ΔW itself."""
