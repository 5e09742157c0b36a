"""Search: greedy, sampled, beams, over a shared KV cache."""
