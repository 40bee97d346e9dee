"""Command line, run folders, training loops, tables and plots."""
