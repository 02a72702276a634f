"""Who trains what, when: spans, orders, coverage and costs. Imports neither ray nor torch."""
