"""Documents as they lie: finding, reading, filtering and comparing them."""
