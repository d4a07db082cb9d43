"""Summaries of long documents: learned from pairs, written by beam search, scored by ROUGE."""
