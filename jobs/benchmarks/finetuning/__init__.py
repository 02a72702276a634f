"""Ways to fine-tune a language model, compared: what they are, their cells, their table."""
