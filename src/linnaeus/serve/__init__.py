"""`linnaeus serve`: a model behind HTTP, and a page to use it by.

A request's way: `connections` (patience with clients) -> `gate` (who may) -> `app` (routes) -> `uploads` (its images,
counted while they arrive) -> `service` (decode, batch, answer) -> `batching` (one network for all clients).
"""
