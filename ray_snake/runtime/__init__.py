"""The actors and what they need: driver, nodes, process engine, roster, journal, checkpoints."""
