"""The process that owns the namespace of all TAPs, and decides nothing."""
