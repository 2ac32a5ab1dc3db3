"""`linnaeus serve`: a model behind HTTP, with a web page.

The path of a request: `connections` (time limits) -> `access` (token, host, security headers) -> `app` (routes) ->
`uploads` (its images, counted as they arrive) -> `service` (decode, predict, explain) -> `batching` (one network shared
by all clients).
"""
