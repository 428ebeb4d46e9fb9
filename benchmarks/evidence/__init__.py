"""What can be proven of a GPU kernel without a GPU: its machine code, and the bytes it moves."""
