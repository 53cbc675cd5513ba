"""What a run is: its config, stages, recorded inputs, training states. Imports data and below."""
