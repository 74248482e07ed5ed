"""The command `bench`: measures how a server answers under a load."""
