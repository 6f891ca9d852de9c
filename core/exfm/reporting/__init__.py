"""results.json and the HTML report."""
