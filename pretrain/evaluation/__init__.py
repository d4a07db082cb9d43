"""What a model is worth on text it never trained on."""
