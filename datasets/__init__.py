"""Workload definitions, the record store and the log schema."""
