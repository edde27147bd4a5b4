"""The size of the row blocks of guided attention, which its kernel and the memory estimate share."""

ROW_BLOCK = 128  # measured: 64 and 256 take 10 to 30% longer at 256 to 1,024 tokens, with one thread or two


def rows_of_block(T: int) -> int:
    """Query rows of a block: fewer in long sequences, so that a block's size does not grow with T."""
    return max(32, min(ROW_BLOCK, ROW_BLOCK * 2048 // T))
