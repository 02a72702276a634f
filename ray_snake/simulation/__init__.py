"""Runs on virtual clocks: the planning of real runs against nodes that are drawn or recorded."""
