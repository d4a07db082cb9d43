"""Stops, hangs, dead ranks, spikes: what ends or bends a run, and how it goes on."""
