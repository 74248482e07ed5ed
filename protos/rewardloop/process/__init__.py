"""What every process does alike: settings, log, traces, process metrics, the look of plots."""
