"""One file per group of commands; each has ``register(application)`` and imports lazily."""
