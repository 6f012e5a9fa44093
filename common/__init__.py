"""The small package behind the notebooks: data, training, probes, plots, records and exercises."""
