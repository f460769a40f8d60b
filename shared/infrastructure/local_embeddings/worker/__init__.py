"""A backend in processes of its own, so that what kills it does not kill its user."""

from shared.infrastructure.local_embeddings.worker.backend import ProcessBackend

__all__ = ["ProcessBackend"]
