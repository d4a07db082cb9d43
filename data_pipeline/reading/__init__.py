"""From shards to batches: order, mixture, windows, damage, streams and loaders."""
