"""Importers: each turns an outside graph into algebra programs."""
