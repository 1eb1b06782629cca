"""Many runs side by side: means over seeds, settings chosen on validation people, one page."""
