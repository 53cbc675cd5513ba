"""What trains a run, and what says how it goes. Imports sync and below."""
