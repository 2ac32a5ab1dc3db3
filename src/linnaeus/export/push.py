"""push(): a model file and its card as a repository of the Hugging Face hub."""

from __future__ import annotations

from linnaeus.errors import UserError
from linnaeus.export.model_card import model_card
from linnaeus.inference.classifier import Classifier
from linnaeus.modelfile.hub_models import FILE, parse_repository
from linnaeus.models.backbones.hub import MODEL_PREFIX, client, endpoint, refusal

CARD = "README.md"  # which the hub shows


def push(classifier: Classifier, name: str, *, private: bool = False, license: str | None = None) -> tuple[str, bool]:
    """Upload the model file and its card to the repository `name`, OWNER/NAME, which is created if need be.

    A card that the repository has already is kept, because its owner may have edited it. Returns the address, and
    whether the card was written. Raises UserError, with the next step, where the hub refuses.
    """
    repository, revision = parse_repository(name)
    shown = f"{MODEL_PREFIX}{repository}"
    if revision != "main":
        raise UserError(f"{name}: a model is pushed to main; give OWNER/NAME without @{revision}")
    classifier.require_one_label("push")
    if classifier.path.suffix != ".safetensors":
        raise UserError(f"{classifier.path}: push uploads the original; give the run folder or its model.safetensors")
    hub = client(shown)
    if hub.get_token() is None:
        raise UserError(f"{shown}: set HF_TOKEN to a token of {endpoint()}/settings/tokens that may write")
    api = hub.HfApi(endpoint=endpoint())
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        fresh = not api.file_exists(repository, CARD)
        # From where the files are: the run may be on a disk that is full or read-only.
        files = [hub.CommitOperationAdd(FILE, classifier.path)]
        if fresh:
            text = model_card(classifier, FILE, repository=repository, license=license)
            files.append(hub.CommitOperationAdd(CARD, text.encode()))
        title = f"Upload a model for {len(classifier.classes)} classes"
        api.create_commit(repository, files, commit_message=title)
    except Exception as error:  # the client has many exceptions of its own
        # Refusals of our own, raised above, are readable already.
        if isinstance(error, UserError | MemoryError):
            raise
        raise refusal(shown, repository, error) from None
    return f"{endpoint()}/{repository}", fresh
