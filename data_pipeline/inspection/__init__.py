"""Looking at data sets: what is in them, and whether it is as it was written."""
