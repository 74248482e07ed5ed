"""What a signal weighs: by its person, by who or what judged, and by the lengths that it compares."""
