"""How good a version is: measurements of reward models and policies, their reports, and the checks of the gates."""
