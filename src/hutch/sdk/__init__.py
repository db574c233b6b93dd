"""The SDK: what programs use to drive Hutch. Its names are loaded when they are first asked for."""
