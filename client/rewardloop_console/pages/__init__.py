"""The pages. Each lists its addresses in `PATHS`."""
