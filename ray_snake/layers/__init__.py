"""A block's weights on the move: state and ledger, and with torch: tensors and files."""
