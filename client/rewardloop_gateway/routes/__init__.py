"""The routes of the HTTP door, and the JSON of each."""
