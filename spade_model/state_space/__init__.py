"""The global branch: `mixer` defines the slot for a state space, `registry` fills it."""
