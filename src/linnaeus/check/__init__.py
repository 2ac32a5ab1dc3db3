"""What is wrong with this data? Files, images, duplicates, classes and labels, before anything is trained on them."""
