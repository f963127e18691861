"""Rewrite rules: one file a rule, each with `propose` and `apply`."""
