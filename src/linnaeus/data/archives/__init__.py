"""Archives as folders: zip and tar files, their names and the byte ranges of what they hold."""
