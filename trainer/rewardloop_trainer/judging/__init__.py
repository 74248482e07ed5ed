"""Models as judges: what compares and rates responses, and the chat models that are asked to."""
