"""What a run keeps: the journal, files under their digests, versions of the model, the registry."""
