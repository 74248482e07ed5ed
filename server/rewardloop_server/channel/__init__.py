"""How front processes hand groups to the engine's process over a Unix socket."""
