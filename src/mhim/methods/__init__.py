"""Training methods: plain supervision, and MHIM around any aggregator."""
