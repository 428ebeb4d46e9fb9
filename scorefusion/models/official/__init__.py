"""Models trained with other code, brought into this one's form."""
