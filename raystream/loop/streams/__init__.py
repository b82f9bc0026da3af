"""Rows that keep arriving: each is scored once, decided on once, and that is kept."""
