"""NE, AUC, GAUC, calibration, gains with intervals, gain shares."""
