"""The one-off commands: `policy-train`, `sft` and `export`."""
