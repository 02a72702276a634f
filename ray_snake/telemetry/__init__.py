"""What a run shows and reports, read from its events and its journal alone."""
