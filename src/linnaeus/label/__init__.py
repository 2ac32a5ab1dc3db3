"""`linnaeus label`: label images in a browser while a classifier learns from the answers.

`journal` keeps the answers, `labels_csv` writes them as a source for training; `features` computes what the frozen
backbone sees; `head` is solved again after each answer; `selection` chooses the next questions; `session` connects
them; `app` and `server` put a page in front.
"""
