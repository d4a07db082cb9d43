"""Classes or numbers for texts and pairs of texts: GLUE's tasks, and a user's own."""
