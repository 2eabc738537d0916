"""The only network: what comes from the Hub and what goes there, through huggingface_hub's own login and cache."""

from w4afp8.hub.fetch import find_data, find_model, model_id, source_at_hand

__all__ = ["find_data", "find_model", "model_id", "source_at_hand"]
