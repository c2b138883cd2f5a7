"""What a run is: one file, checked whole before anything is loaded."""
