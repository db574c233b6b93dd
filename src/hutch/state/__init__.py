"""What is on record: rows of sandboxes, written before the acts that they describe."""
