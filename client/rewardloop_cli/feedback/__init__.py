"""The commands below `rewardloop feedback`: import and export data files, take imports back, and erase."""
