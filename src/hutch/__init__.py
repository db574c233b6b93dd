"""Hutch: disposable computers for AI agents, CI jobs and untrusted programs.

The public surface is `hutch.sdk`; everything else is the implementation behind one API.
"""

__version__ = "0.1.0"
