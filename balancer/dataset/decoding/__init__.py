"""Decode untrusted images and tables in processes with limits."""
