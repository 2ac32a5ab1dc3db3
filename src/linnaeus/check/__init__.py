"""What is wrong with this data? Files, pictures, duplicates, classes and labels, before anything is trained on them."""
