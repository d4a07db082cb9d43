"""Language models: training on plain text, and perplexity by sliding windows."""
