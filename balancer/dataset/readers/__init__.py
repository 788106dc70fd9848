"""The layouts of datasets, one file for each. Every reader gives the same listing."""
