"""What the serving process measures of itself."""
