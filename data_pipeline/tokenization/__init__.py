"""From text to ids: training a tokenizer, using it, and judging it."""
