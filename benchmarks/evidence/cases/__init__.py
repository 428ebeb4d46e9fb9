"""Every kernel at the paper's sizes: one file an op, each with a function `cases(device)`."""
