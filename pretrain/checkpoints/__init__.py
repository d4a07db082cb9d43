"""What survives: written as one transaction, verified, kept by rule, loaded on any ranks."""
