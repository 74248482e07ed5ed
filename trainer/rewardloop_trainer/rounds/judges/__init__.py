"""Who judges a candidate policy: a model of its own signals, and the reward version before the live one."""
