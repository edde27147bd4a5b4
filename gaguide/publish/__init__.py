"""Publishing an exported model: its model card, and its upload to a hub."""

from typing import TYPE_CHECKING

from gaguide.lazy import lazy_names

if TYPE_CHECKING:
    from gaguide.publish.base import BaseModel, read_base_model
    from gaguide.publish.card import CARD, Score, read_own_card, write_card
    from gaguide.publish.push import push_model

__all__ = ["CARD", "BaseModel", "Score", "push_model", "read_base_model", "read_own_card", "write_card"]

__getattr__ = lazy_names(__name__)
