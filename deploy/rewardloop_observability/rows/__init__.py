"""The rows of the dashboard, one a file. Each file's `panels` returns a row's panels in their order."""
