"""The work behind the notebooks: one flat package, `from src.dedup import cosine_filter`."""
