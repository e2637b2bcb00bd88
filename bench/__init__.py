"""Side-by-side measurements. `bench/RESULTS.md` is the only place with performance figures."""
