"""Decoding images and tables that strangers wrote, in processes with limits."""
