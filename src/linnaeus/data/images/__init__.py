"""Images: from the bytes of a file to rows of pixels."""
