"""What pretraining is worth on tasks: a small SPADE, pretrained here, then fine-tuned."""
