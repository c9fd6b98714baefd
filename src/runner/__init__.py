"""The runner behind run_all.sh."""
