"""The modules that every process shares: settings, logging, tracing, process metrics, and the style of plots."""
