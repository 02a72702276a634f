"""Networks as block stacks: one file per network, found by name through `models.registry`."""
