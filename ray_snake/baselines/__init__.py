"""Rivals of the snake, as strategies: the same driver, node actors, engine, data and accounting."""
