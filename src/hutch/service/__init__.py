"""One host's sandboxes: their lives, programs, output, and what is left after a crash."""
