"""One visit: block stack, training, losses, prefix cache. Imports torch, never ray."""
