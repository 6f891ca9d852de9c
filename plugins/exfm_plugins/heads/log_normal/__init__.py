"""Log-normal: mean and deviation of the logarithm, and the expected value of both."""
