"""What PyKinML imports and this torch has no wheels for. Only PyKinML's worker has the folder on its path."""
