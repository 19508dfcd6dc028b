"""Find sentences that contain each token of interest."""
