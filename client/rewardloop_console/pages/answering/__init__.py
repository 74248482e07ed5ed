"""The parts of the page Label: the list of projects, a task as it is shown, and a form read as a verdict."""
