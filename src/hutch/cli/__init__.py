"""The `hutch` command: one module per noun; parse, call the API, render."""
