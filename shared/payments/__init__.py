"""Payments: accept them, settle them, read them, verify the books."""
