"""The commands that run once and end: `policy-train`, `sft` and `export`."""
