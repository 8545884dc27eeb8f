"""What is told about a run: the doctor's checks, the dry run, the manifest and the model card."""
