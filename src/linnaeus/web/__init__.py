"""`export --to web`: the page of `serve` as a folder that any static host serves. The model runs in the browser."""
