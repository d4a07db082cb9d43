"""What the paper claims, measured again at a size that fits two CPU cores."""
