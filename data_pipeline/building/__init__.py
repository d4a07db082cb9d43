"""From corpora to shards: planning, sharing the work, writing, and mending."""
