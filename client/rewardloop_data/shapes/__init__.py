"""The shapes of rows that are known, each a small declaration: its keys, and what a row of it says."""
