"""Runs as wholes: resumed, judged again, reproduced, traced."""
