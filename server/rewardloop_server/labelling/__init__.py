"""Labelling: add tasks, hand them out by lease, record the answers, take them back, and say how far a project is."""
