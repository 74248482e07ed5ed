"""Ends what does not end by itself: native work, and the process."""
