"""NE, AUC, GAUC, calibration, gains with intervals, transfer ratio."""
