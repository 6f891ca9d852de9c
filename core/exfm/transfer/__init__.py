"""What goes from teachers to a student while it trains: teacher output, vectors and parameters, each in its time."""
