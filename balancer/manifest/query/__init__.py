"""Queries: rows by a condition, counts by columns, SQL."""
