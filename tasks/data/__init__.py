"""Public datasets: downloaded, checked, cached, and split."""
