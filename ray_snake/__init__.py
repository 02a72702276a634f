"""Snake Learning on Ray: train one network across nodes that keep their data."""
