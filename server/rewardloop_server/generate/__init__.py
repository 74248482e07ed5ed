"""Generation as callers see it: the way to the policy worker, and best of n."""
