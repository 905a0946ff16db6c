"""A recorded click log → the collector: readers of log formats, the sender, and the state that a replay resumes from."""
