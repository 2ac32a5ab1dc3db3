"""Archives as folders: zip and tar files, the names in them and the byte ranges of their members."""
