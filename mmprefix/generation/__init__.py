"""Text generation over a shared KV cache: greedy search, sampling, beam search."""
